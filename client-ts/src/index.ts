/**
 * The client for apps in browsers and Node that keep their customers in Strongroom.
 *
 * Every request is proven by the device's P-256 key (DPoP, RFC 9449), which WebCrypto holds and never
 * shows; an access token that has expired is refreshed once, however many requests notice; a request is
 * sent again only when that cannot do a thing twice; and what the server refuses is a {@link Problem}.
 *
 *     const key = await openDeviceKey("phone");
 *     const app = new Strongroom({ baseURL: "https://api.example.com", key, store: await openSessionStore("phone") });
 *     const registration = await app.register("+447700900123");
 *     await registration.complete(code, privateCode, "Ada's phone");
 *     const login = await app.login("+447700900123", privateCode);
 *     await login.complete(nextCode, "Ada's phone");
 *     await app.collection("profile").put("main", { full_name: "Ada Lovelace" });
 *
 * A browser checks the server's certificate and cannot pin keys; apps that must pin use the Go SDK.
 */
import type { components, operations } from "./schema.js";

type Schemas = components["schemas"];
/** The JSON that an operation answers with when it succeeds. */
type Answer<Op extends keyof operations> = operations[Op]["responses"] extends infer R
  ? { [Status in keyof R & (200 | 201 | 202)]: R[Status] extends { content: { "application/json": infer Body } } ? Body : never }[keyof R & (200 | 201 | 202)]
  : never;
/** The JSON that an operation takes. */
type Body<Op extends keyof operations> = operations[Op] extends { requestBody: { content: { "application/json": infer B } } } ? B : never;

/** One of the customer's devices. */
export type Device = Schemas["DeviceView"];
/** The session as the server knows it. */
export type Session = Answer<"get-session">;
/** A field's value, as JSON has it. */
export type Fields = Record<string, unknown>;
/** An encrypted document of the customer; its sensitive fields are masked unless `reveal` returned it. */
export type StoredRecord = Omit<Schemas["RecordView"], "fields"> & { fields: Fields; etag: string };

/** A session as the device keeps it. Times are milliseconds since 1970. */
export interface Tokens {
  access: string;
  accessExpiresAt: number;
  refresh: string;
  session: string;
  customer: string;
  device: string;
}

/** Keeps one session over restarts. Only one Strongroom may refresh a session at a time; see `lock`. */
export interface SessionStore {
  load(): Promise<Tokens | undefined>;
  /** Replaces what was saved; undefined means that the session is over. */
  save(tokens: Tokens | undefined): Promise<void>;
  /** Runs fn while nobody else refreshes the session, such as another tab. */
  lock?<T>(fn: () => Promise<T>): Promise<T>;
}

export interface Options {
  /** The origin of the app listener: https://host[:port]. */
  baseURL: string;
  /** The device's key: ES256, private half not extractable. */
  key: CryptoKeyPair;
  /** Keeps the session over restarts; without it the session lives in memory. */
  store?: SessionStore;
  /** Sends requests; the platform's own fetch when not given. */
  fetch?: typeof fetch;
  /** The longest wait, in milliseconds, that the client takes upon itself. 10000 when not given. */
  maxWait?: number;
  /** Bounds one attempt at a request, in milliseconds. 30000 when not given. */
  timeout?: number;
}

/** What the server answers when it does not do what was asked (RFC 9457). It never holds a secret. */
export class Problem extends Error {
  override readonly name = "Problem";
  constructor(
    /** The stable name of the problem, such as "login-failed"; "" when the answer was none of Strongroom's. */
    readonly slug: string,
    /** The HTTP status. */
    readonly status: number,
    readonly detail: string,
    /** The problem's other members, such as `device` or `errors`. */
    readonly members: Record<string, unknown>,
    /** Quote it when you ask the operator. */
    readonly requestID: string,
    /** How long to wait before another attempt, in milliseconds; 0 when not said. */
    readonly retryAfter: number,
  ) {
    super(`${slug || "status"} (${status})${detail ? ": " + detail : ""}`);
  }

  /** What is wrong with which field, for invalid-record and the like. */
  get fieldErrors(): { field: string; message: string }[] {
    const list = this.members["errors"];
    return Array.isArray(list) ? list : [];
  }
}

/** The operation needs a session and there is none. */
export class NotLoggedIn extends Error {
  override readonly name = "NotLoggedIn";
  constructor() {
    super("not logged in");
  }
}

/** Says under which circumstances a record is written or deleted. */
export type Condition = { ifMatch: string } | { ifNew: true };

interface Request {
  method: "GET" | "POST" | "PUT" | "DELETE";
  path: string;
  query?: Record<string, string>;
  headers?: Record<string, string>;
  body?: unknown;
  /** The request carries the access token. */
  session?: boolean;
}

interface Received {
  headers: Headers;
  json: unknown;
}

const PROBLEM = "urn:strongroom:problem:";
/** Access tokens are refreshed this long before they expire, so that none does on its way. */
const EARLY = 1000;
const RETRIES = 3;

export class Strongroom {
  readonly #origin: string;
  readonly #key: CryptoKeyPair;
  readonly #store: SessionStore;
  readonly #fetch: typeof fetch;
  readonly #maxWait: number;
  readonly #timeout: number;
  #jwk: Promise<JsonWebKey> | undefined;
  #nonce = "";
  #skew = 0; // how far the server's clock is ahead of ours, in milliseconds, when that matters
  #refreshing: Promise<Tokens> | undefined;

  constructor(o: Options) {
    const url = new URL(o.baseURL);
    if (url.protocol !== "https:" || url.pathname !== "/" || url.search || url.hash || url.username) {
      throw new TypeError(`baseURL ${o.baseURL} is not of the form https://host[:port]`);
    }
    if (o.key.privateKey.extractable) throw new TypeError("the device's key must not be extractable");
    this.#origin = url.origin;
    this.#key = o.key;
    this.#store = o.store ?? memoryStore();
    this.#fetch = o.fetch ?? ((input, init) => fetch(input, init));
    this.#maxWait = o.maxWait ?? 10_000;
    this.#timeout = o.timeout ?? 30_000;
  }

  /** Starts the registration of a mobile number; the answer is the same for numbers that have an account. */
  async register(phone: string): Promise<Registration> {
    const body: Body<"start-registration"> = { phone };
    const a = (await this.#call({ method: "POST", path: "/v1/registrations", body })).json as Answer<"start-registration">;
    return new Registration(a.registration, (code, private_code, device_name) => {
      const body: Body<"complete-registration"> = { code, private_code, device_name };
      return this.#call({ method: "POST", path: path("registrations", a.registration, "complete"), body })
        .then((r) => r.json as Answer<"complete-registration">);
    });
  }

  /** Starts a login. It succeeds whatever is given, so that nobody learns who is a customer. */
  async login(phone: string, privateCode: string): Promise<Login> {
    const body: Body<"start-login"> = { phone, private_code: privateCode };
    const a = (await this.#call({ method: "POST", path: "/v1/logins", body })).json as Answer<"start-login">;
    return new Login(a.login, async (code, device_name) => {
      const body: Body<"complete-login"> = { code, device_name };
      const r = await this.#call({ method: "POST", path: path("logins", a.login, "complete"), body });
      const tokens = tokensOf(r.json);
      await this.#store.save(tokens);
      return tokens;
    });
  }

  /** The session as this device keeps it, without asking the server; undefined when there is none. */
  tokens(): Promise<Tokens | undefined> {
    return this.#store.load();
  }

  /** The session as the server knows it. */
  async session(): Promise<Session> {
    return (await this.#call({ method: "GET", path: "/v1/session", session: true })).json as Session;
  }

  /** Ends the session on the server and forgets it here. */
  async logout(): Promise<void> {
    if (!(await this.#store.load())) return;
    try {
      await this.#call({ method: "POST", path: "/v1/logout", session: true });
    } catch (err) {
      if (!(err instanceof NotLoggedIn || err instanceof Problem && over(err))) throw err;
    }
    await this.#store.save(undefined);
  }

  /** All of the customer's devices. */
  async devices(): Promise<Device[]> {
    return ((await this.#call({ method: "GET", path: "/v1/devices", session: true })).json as Answer<"list-devices">).devices;
  }

  /** Lets a pending device in. The number is what the customer reads on that device, where it came as
   * `members.number`, and types into this one: never show it here. After three wrong ones (wrong-number) the
   * device is refused for good. */
  async approveDevice(device: string, number: string): Promise<void> {
    await this.#call({ method: "POST", path: path("devices", device, "approve"), session: true, body: { number } });
  }

  /** Shuts a device out and ends its sessions at once. */
  async revokeDevice(device: string): Promise<void> {
    await this.#call({ method: "DELETE", path: path("devices", device), session: true });
  }

  /** The customer's records of a kind, for example "profile". */
  collection(name: string): Collection {
    return new Collection(name, (r) => this.#call({ ...r, session: true }));
  }

  /** Sends a request with a fresh nonce, a fresh token, and again where that is right. */
  async #call(r: Request): Promise<Received> {
    let nonceGiven = false, tokenGiven = false, clockSet = false;
    for (let attempt = 0; ; ) {
      const access = r.session ? await this.#access() : undefined;
      let failure: unknown;
      let date: string | null = null;
      try {
        const answer = await this.#attempt(r, access);
        date = answer.headers.get("Date");
        if (answer.ok) return { headers: answer.headers, json: await read(answer) };
        failure = await problemOf(answer);
      } catch (err) {
        failure = err;
      }
      if (failure instanceof Problem) {
        if (failure.slug === "use-dpop-nonce" && !nonceGiven) {
          nonceGiven = true;
          continue;
        }
        if (failure.slug === "token-expired" && access && !tokenGiven) {
          tokenGiven = true;
          await this.#refresh(access);
          continue;
        }
        if (failure.slug === "invalid-dpop-proof" && !clockSet && this.#setClock(date)) {
          clockSet = true;
          continue;
        }
        if (access && over(failure)) await this.#forget(access);
      }
      const wait = this.#wait(r, attempt++, failure);
      if (wait === undefined) throw failure;
      await new Promise((resolve) => setTimeout(resolve, wait));
      nonceGiven = false; // it may have gone stale while we waited
    }
  }

  async #attempt(r: Request, access: string | undefined): Promise<Response> {
    const target = this.#origin + r.path;
    const headers: Record<string, string> = {
      Accept: "application/json, application/problem+json",
      DPoP: await this.#proof(r.method, target, access),
      ...r.headers,
    };
    if (access) headers["Authorization"] = "DPoP " + access;
    const init: RequestInit = {
      method: r.method, headers, cache: "no-store", credentials: "omit", redirect: "error", referrerPolicy: "no-referrer",
      signal: AbortSignal.timeout(this.#timeout),
    };
    if (r.body !== undefined) {
      headers["Content-Type"] = "application/json";
      init.body = JSON.stringify(r.body);
    }
    const query = new URLSearchParams(r.query).toString();
    const answer = await this.#fetch(query ? `${target}?${query}` : target, init);
    this.#nonce = answer.headers.get("DPoP-Nonce") ?? this.#nonce;
    return answer;
  }

  /** A DPoP proof (RFC 9449 section 4.2) for one request. */
  async #proof(method: string, target: string, access: string | undefined): Promise<string> {
    this.#jwk ??= crypto.subtle.exportKey("jwk", this.#key.publicKey);
    const { kty, crv, x, y } = await this.#jwk;
    const header = { typ: "dpop+jwt", alg: "ES256", jwk: { kty, crv, x, y } };
    const claims: Record<string, unknown> = {
      jti: crypto.randomUUID(), htm: method, htu: target, iat: Math.floor((Date.now() + this.#skew) / 1000),
    };
    if (this.#nonce) claims["nonce"] = this.#nonce;
    if (access) claims["ath"] = base64url(await crypto.subtle.digest("SHA-256", utf8(access)));
    const text = base64url(utf8(JSON.stringify(header))) + "." + base64url(utf8(JSON.stringify(claims)));
    return text + "." + base64url(await crypto.subtle.sign({ name: "ECDSA", hash: "SHA-256" }, this.#key.privateKey, utf8(text)));
  }

  async #access(): Promise<string> {
    const t = await this.#store.load();
    if (!t) throw new NotLoggedIn();
    if (Date.now() < t.accessExpiresAt - EARLY) return t.access;
    return (await this.#refresh(t.access)).access;
  }

  /** Replaces the tokens to which the stale access token belongs. All who need it wait for the same
   * exchange: a refresh token is good for one use, and the second ends the session. */
  #refresh(stale: string): Promise<Tokens> {
    const exchange = async (): Promise<Tokens> => {
      const old = await this.#store.load();
      if (!old) throw new NotLoggedIn();
      if (old.access !== stale) return old; // another tab was faster
      const body: Body<"refresh-session"> = { refresh_token: old.refresh };
      try {
        const tokens = tokensOf((await this.#call({ method: "POST", path: "/v1/sessions/refresh", body })).json);
        await this.#store.save(tokens);
        return tokens;
      } catch (err) {
        if (err instanceof Problem && over(err)) await this.#forget(stale);
        throw err;
      }
    };
    this.#refreshing ??= (this.#store.lock ? this.#store.lock(exchange) : exchange()).finally(() => {
      this.#refreshing = undefined;
    });
    return this.#refreshing;
  }

  /** Forgets the session to which an access token belongs, unless another has begun since. */
  async #forget(access: string): Promise<void> {
    if ((await this.#store.load())?.access === access) await this.#store.save(undefined);
  }

  /** Dates the next proofs by the server's clock when the device's own is wrong. */
  #setClock(date: string | null): boolean {
    const skew = date ? Date.parse(date) - Date.now() : NaN;
    if (!(Math.abs(skew - this.#skew) >= 20_000)) return false;
    this.#skew = skew;
    return true;
  }

  /** How long to wait before r is sent once more; undefined when it must not be. */
  #wait(r: Request, attempt: number, failure: unknown): number | undefined {
    if (attempt >= RETRIES) return undefined;
    let wait = 200 * 2 ** attempt * (0.5 + Math.random() / 2);
    const repeatable = r.method === "GET";
    if (failure instanceof Problem) {
      switch (failure.status) {
        case 429: // refused before anything was done
          break;
        case 503:
          if (!failure.retryAfter && !repeatable) return undefined;
          break;
        case 502:
        case 504:
          if (!repeatable) return undefined;
          break;
        default:
          return undefined;
      }
      wait = failure.retryAfter ? failure.retryAfter * (1 + Math.random() / 4) : wait;
    } else if (failure instanceof NotLoggedIn || !repeatable) {
      return undefined; // there was no answer: the server may have done it
    }
    return wait > this.#maxWait ? undefined : wait;
  }
}

/** A sign-up that awaits the code sent by SMS. */
export class Registration {
  constructor(
    readonly id: string,
    /** Makes the account. A weak-private-code costs no try of the code; registration-failed does. */
    readonly complete: (code: string, privateCode: string, deviceName: string) => Promise<Answer<"complete-registration">>,
  ) {}
}

/** A login that awaits the code sent by SMS. */
export class Login {
  constructor(
    readonly id: string,
    /** Ends the login and begins the session. device-pending means that all was right, but the device,
     * `members.device`, must be approved from another one by typing `members.number`. */
    readonly complete: (code: string, deviceName: string) => Promise<Tokens>,
  ) {}
}

/** One kind of the customer's records. */
export class Collection {
  readonly #call: (r: Request) => Promise<Received>;
  constructor(readonly name: string, call: (r: Request) => Promise<Received>) {
    this.#call = call;
  }

  /** Writes a record and returns it masked. Replacing one needs ifMatch. */
  async put(key: string, fields: Fields, condition?: Condition): Promise<StoredRecord> {
    return this.#one({ method: "PUT", path: path("records", this.name, key), headers: conditions(condition), body: fields });
  }

  /** Returns a record with its sensitive fields masked. */
  async get(key: string): Promise<StoredRecord> {
    return this.#one({ method: "GET", path: path("records", this.name, key) });
  }

  /** Returns a record whole, or the named fields of it, for a purpose; the purpose goes into the trail. */
  async reveal(key: string, purpose: string, ...fields: string[]): Promise<StoredRecord> {
    return this.#one({ method: "GET", path: path("records", this.name, key), query: { reveal: fields.join(",") || "all", purpose } });
  }

  /** Deletes a record; ifMatch makes sure that it is the one that was read. */
  async delete(key: string, condition?: Condition): Promise<void> {
    await this.#call({ method: "DELETE", path: path("records", this.name, key), headers: conditions(condition) });
  }

  /** Up to limit records, masked, that come after a key. `next` is where the next page begins. */
  async list(limit?: number, after?: string): Promise<{ records: StoredRecord[]; next: string }> {
    const query: Record<string, string> = {};
    if (limit) query["limit"] = String(limit);
    if (after) query["after"] = after;
    const a = (await this.#call({ method: "GET", path: path("records", this.name), query })).json as Answer<"list-records">;
    return { records: (a.records ?? []).map((r) => stored(r, null)), next: a.next ?? "" };
  }

  async #one(r: Request): Promise<StoredRecord> {
    const a = await this.#call(r);
    return stored(a.json as Schemas["RecordView"], a.headers.get("ETag"));
  }
}

/** Makes a device key whose private half WebCrypto never shows. */
export function newDeviceKey(): Promise<CryptoKeyPair> {
  return crypto.subtle.generateKey({ name: "ECDSA", namedCurve: "P-256" }, false, ["sign", "verify"]);
}

/** Returns the device key of that name from IndexedDB, made at the first call. */
export async function openDeviceKey(name: string): Promise<CryptoKeyPair> {
  const fresh = await newDeviceKey();
  return database("readwrite", (s) => s.get("key " + name), (found, s) => {
    if (found) return found as CryptoKeyPair;
    s.put(fresh, "key " + name);
    return fresh;
  });
}

/** Returns a store that keeps the session of that name in IndexedDB, sealed with AES-GCM under a key that
 * WebCrypto does not show, and lets one tab refresh at a time. */
export async function openSessionStore(name: string): Promise<SessionStore> {
  const fresh = await crypto.subtle.generateKey({ name: "AES-GCM", length: 256 }, false, ["encrypt", "decrypt"]);
  const key = await database("readwrite", (s) => s.get("wrap " + name), (found, s) => {
    if (found) return found as CryptoKey;
    s.put(fresh, "wrap " + name);
    return fresh;
  });
  const slot = "session " + name;
  const additionalData = utf8(slot);
  return {
    async load() {
      const sealed = await database("readonly", (s) => s.get(slot), (v) => v as { iv: Uint8Array<ArrayBuffer>; data: ArrayBuffer } | undefined);
      if (!sealed) return undefined;
      const plain = await crypto.subtle.decrypt({ name: "AES-GCM", iv: sealed.iv, additionalData }, key, sealed.data);
      return JSON.parse(new TextDecoder().decode(plain)) as Tokens;
    },
    async save(tokens) {
      if (!tokens) {
        await database("readwrite", (s) => s.delete(slot), () => undefined);
        return;
      }
      const iv = crypto.getRandomValues(new Uint8Array(12));
      const data = await crypto.subtle.encrypt({ name: "AES-GCM", iv, additionalData }, key, utf8(JSON.stringify(tokens)));
      await database("readwrite", (s) => s.put({ iv, data }, slot), () => undefined);
    },
    async lock<T>(fn: () => Promise<T>): Promise<T> {
      let result: T | undefined;
      await navigator.locks.request("strongroom " + name, async () => {
        result = await fn();
      });
      return result as T;
    },
  };
}

/** Forgets key and session of that name: the device is gone, and a new one must be approved. */
export async function forgetDevice(name: string): Promise<void> {
  await database("readwrite", (s) => {
    s.delete("session " + name);
    s.delete("wrap " + name);
    return s.delete("key " + name);
  }, () => undefined);
}

/** Runs one request and what follows from it in one transaction of this client's IndexedDB. */
async function database<T>(mode: IDBTransactionMode, ask: (s: IDBObjectStore) => IDBRequest, then: (result: unknown, s: IDBObjectStore) => T): Promise<T> {
  const db = await new Promise<IDBDatabase>((resolve, reject) => {
    const opening = indexedDB.open("strongroom", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("device");
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => reject(opening.error);
  });
  try {
    return await new Promise<T>((resolve, reject) => {
      const transaction = db.transaction("device", mode, { durability: "strict" });
      const store = transaction.objectStore("device");
      let result: T;
      const asked = ask(store);
      asked.onsuccess = () => {
        result = then(asked.result, store);
      };
      transaction.oncomplete = () => resolve(result);
      transaction.onabort = transaction.onerror = () => reject(transaction.error);
    });
  } finally {
    db.close();
  }
}

function memoryStore(): SessionStore {
  let tokens: Tokens | undefined;
  return {
    load: async () => tokens,
    save: async (t) => {
      tokens = t;
    },
  };
}

function tokensOf(json: unknown): Tokens {
  const a = json as Answer<"complete-login">;
  if (a?.token_type !== "DPoP" || !a.access_token || !a.refresh_token) throw new Error("the answer holds no DPoP-bound tokens");
  return {
    access: a.access_token, accessExpiresAt: Date.now() + a.expires_in * 1000, refresh: a.refresh_token,
    session: a.session, customer: a.customer, device: a.device,
  };
}

function stored(r: Schemas["RecordView"], etag: string | null): StoredRecord {
  return { ...r, fields: (r.fields ?? {}) as Fields, etag: etag ?? `"${r.version}"` };
}

/** The session has ended, whatever is tried. */
function over(p: Problem): boolean {
  return ["invalid-token", "session-revoked", "invalid-refresh-token", "this-device-revoked"].includes(p.slug);
}

function conditions(c: Condition | undefined): Record<string, string> {
  if (!c) return {};
  return "ifMatch" in c ? { "If-Match": c.ifMatch } : { "If-None-Match": "*" };
}

/** Joins escaped segments; one that a server would take for a direction is refused. */
function path(...segments: string[]): string {
  return "/v1" + segments.map((s) => {
    if (s === "" || s === "." || s === "..") throw new TypeError(`${JSON.stringify(s)} cannot stand in an address`);
    return "/" + encodeURIComponent(s);
  }).join("");
}

async function read(answer: Response): Promise<unknown> {
  if (answer.status === 204) return undefined;
  if (!isType(answer, "application/json")) throw new Error("the answer is not application/json");
  try {
    return await answer.json();
  } catch {
    throw new Error("the answer is not the JSON that was expected"); // the cause might repeat a value
  }
}

function isType(answer: Response, want: string): boolean {
  return (answer.headers.get("Content-Type") ?? "").split(";")[0]?.trim() === want;
}

async function problemOf(answer: Response): Promise<Problem> {
  const after = answer.headers.get("Retry-After") ?? "";
  const retryAfter = /^\d+$/.test(after) ? Number(after) * 1000 : Math.max(0, (Date.parse(after) || Date.now()) - Date.now());
  const id = answer.headers.get("X-Request-Id") ?? "";
  if (!isType(answer, "application/problem+json")) {
    return new Problem("", answer.status, "the answer is not one of Strongroom's; is this its address?", {}, id, retryAfter);
  }
  const { type, detail, ...members } = (await answer.json()) as Record<string, unknown>;
  const slug = typeof type === "string" && type.startsWith(PROBLEM) ? type.slice(PROBLEM.length) : "";
  return new Problem(slug, answer.status, typeof detail === "string" ? detail : "", members, id, retryAfter);
}

function utf8(s: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(s) as Uint8Array<ArrayBuffer>;
}

function base64url(bytes: ArrayBuffer | Uint8Array): string {
  return btoa(String.fromCharCode(...new Uint8Array(bytes))).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}
