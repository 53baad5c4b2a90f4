/** What the server answers when it does not do what was asked (RFC 9457). It never holds a secret. */
export class Problem extends Error {
    slug;
    status;
    detail;
    members;
    requestID;
    retryAfter;
    name = "Problem";
    constructor(
    /** The stable name of the problem, such as "login-failed"; "" when the answer was none of Strongroom's. */
    slug, 
    /** The HTTP status. */
    status, detail, 
    /** The problem's other members, such as `device` or `errors`. */
    members, 
    /** Quote it when you ask the operator. */
    requestID, 
    /** How long to wait before another attempt, in milliseconds; 0 when not said. */
    retryAfter) {
        super(`${slug || "status"} (${status})${detail ? ": " + detail : ""}`);
        this.slug = slug;
        this.status = status;
        this.detail = detail;
        this.members = members;
        this.requestID = requestID;
        this.retryAfter = retryAfter;
    }
    /** What is wrong with which field, for invalid-record and the like. */
    get fieldErrors() {
        const list = this.members["errors"];
        return Array.isArray(list) ? list : [];
    }
}
/** The operation needs a session and there is none. */
export class NotLoggedIn extends Error {
    name = "NotLoggedIn";
    constructor() {
        super("not logged in");
    }
}
const PROBLEM = "urn:strongroom:problem:";
/** Access tokens are refreshed this long before they expire, so that none does on its way. */
const EARLY = 1000;
const RETRIES = 3;
export class Strongroom {
    #origin;
    #key;
    #store;
    #fetch;
    #maxWait;
    #timeout;
    #jwk;
    #nonce = "";
    #skew = 0; // how far the server's clock is ahead of ours, in milliseconds, when that matters
    #refreshing;
    constructor(o) {
        const url = new URL(o.baseURL);
        if (url.protocol !== "https:" || url.pathname !== "/" || url.search || url.hash || url.username) {
            throw new TypeError(`baseURL ${o.baseURL} is not of the form https://host[:port]`);
        }
        if (o.key.privateKey.extractable)
            throw new TypeError("the device's key must not be extractable");
        this.#origin = url.origin;
        this.#key = o.key;
        this.#store = o.store ?? memoryStore();
        this.#fetch = o.fetch ?? ((input, init) => fetch(input, init));
        this.#maxWait = o.maxWait ?? 10_000;
        this.#timeout = o.timeout ?? 30_000;
    }
    /** Starts the registration of a mobile number; the answer is the same for numbers that have an account. */
    async register(phone) {
        const body = { phone };
        const a = (await this.#call({ method: "POST", path: "/v1/registrations", body })).json;
        return new Registration(a.registration, (body) => this.#call({ method: "POST", path: path("registrations", a.registration, "complete"), body })
            .then((r) => r.json));
    }
    /**
     * Tells the operator's security staff of a weakness, and returns the reference to quote when writing again. It is bound
     * to no device and no session: the server is not told whose app it came from.
     */
    async reportConcern(report) {
        const a = await this.#call({ method: "POST", path: "/v1/security-reports", body: report, unknown: true });
        return a.json.reference;
    }
    /** Starts a login. It succeeds whatever is given, so that nobody learns who is a customer. */
    async login(phone, privateCode, method = "sms") {
        const body = { phone, private_code: privateCode, method };
        const a = (await this.#call({ method: "POST", path: "/v1/logins", body })).json;
        const complete = async (body) => {
            const r = await this.#call({ method: "POST", path: path("logins", a.login, "complete"), body });
            const tokens = tokensOf(r.json);
            await this.#store.save(tokens);
            return tokens;
        };
        const authorize = async (asked) => {
            const body = { ...asked, response_type: "code", code_challenge_method: "S256" };
            return (await this.#call({ method: "POST", path: path("logins", a.login, "authorize"), body })).json;
        };
        return new Login(a.login, a.passkey, complete, authorize);
    }
    /** The session as this device keeps it, without asking the server; undefined when there is none. */
    tokens() {
        return this.#store.load();
    }
    /** The session as the server knows it. */
    async session() {
        return (await this.#call({ method: "GET", path: "/v1/session", session: true })).json;
    }
    /** Ends the session on the server and forgets it here. */
    async logout() {
        if (!(await this.#store.load()))
            return;
        try {
            await this.#call({ method: "POST", path: "/v1/logout", session: true });
        }
        catch (err) {
            if (!(err instanceof NotLoggedIn || err instanceof Problem && over(err)))
                throw err;
        }
        await this.#store.save(undefined);
    }
    /** All of the customer's sessions, on all devices. */
    async sessions() {
        return (await this.#call({ method: "GET", path: "/v1/sessions", session: true })).json.sessions;
    }
    /** Ends one of the customer's sessions at once. */
    async revokeSession(session) {
        await this.#call({ method: "DELETE", path: path("sessions", session), session: true });
    }
    /** Ends all of the customer's sessions but this one, and returns how many. */
    async revokeOtherSessions() {
        return (await this.#call({ method: "POST", path: "/v1/sessions/revoke-others", session: true })).json.revoked;
    }
    /** All of the customer's devices. */
    async devices() {
        return (await this.#call({ method: "GET", path: "/v1/devices", session: true })).json.devices;
    }
    /** Lets a pending device in. The number is what the customer reads on that device, where it came as
     * `members.number`, and types into this one: never show it here. After three wrong ones (wrong-number) the
     * device is refused for good. */
    async approveDevice(device, number) {
        await this.#call({ method: "POST", path: path("devices", device, "approve"), session: true, body: { number } });
    }
    /** Shuts a lost device out at once, be it the last or this one. */
    async reportLost(device) {
        await this.#call({ method: "POST", path: path("devices", device, "lost"), session: true });
    }
    /** Shuts a device out and ends its sessions at once. */
    async revokeDevice(device) {
        await this.#call({ method: "DELETE", path: path("devices", device), session: true });
    }
    /** The customer's second steps. */
    async factors() {
        return (await this.#call({ method: "GET", path: "/v1/factors", session: true })).json;
    }
    /** Gives the customer a secret for an authenticator app, which counts once `confirm` has shown a code of it. Like
     * every change of second steps it needs a recent login (step-up-needed). */
    async enrolTOTP() {
        const { factor, secret, uri } = (await this.#call({ method: "POST", path: "/v1/factors/totp", session: true })).json;
        const confirm = async (code) => {
            const body = { code };
            await this.#call({ method: "POST", path: path("factors", "totp", factor, "confirm"), session: true, body });
        };
        return { factor, secret, uri, confirm };
    }
    /** Makes a passkey on this device, and returns its name. In a browser the customer is asked; elsewhere give the
     * platform's call, from options to its answer in WebAuthn's JSON. */
    async enrolPasskey(create = createPasskey) {
        const a = (await this.#call({ method: "POST", path: "/v1/factors/passkeys", session: true })).json;
        const body = { credential: await create(a.options) };
        await this.#call({ method: "POST", path: path("factors", "passkeys", a.factor, "confirm"), session: true, body });
        return a.factor;
    }
    /** Puts codes by SMS off, once there is another second step, or on again. */
    async setSMS(enabled) {
        const body = { enabled };
        await this.#call({ method: "PUT", path: "/v1/factors/sms", session: true, body });
    }
    /** Takes a second step away. */
    async removeFactor(factor) {
        await this.#call({ method: "DELETE", path: path("factors", factor), session: true });
    }
    /** Changes the private code; all other sessions end. */
    async changePrivateCode(current, changed) {
        const body = { current_code: current, new_code: changed };
        await this.#call({ method: "POST", path: "/v1/private-code", session: true, body });
    }
    /** Begins a step towards a new private code when the customer has forgotten theirs, without a session. There are
     * two: the first ends in a hold of a day, of which the customer is told, and the second sets the code. */
    async resetPrivateCode(phone) {
        const body = { phone };
        const a = (await this.#call({ method: "POST", path: "/v1/private-code/resets", body })).json;
        return new PrivateCodeReset(a.reset, async (code, private_code) => {
            const body = { code, private_code };
            const r = await this.#call({ method: "POST", path: path("private-code", "resets", a.reset, "complete"), body });
            const usable = r.json.usable_at;
            return usable === undefined ? undefined : new Date(usable);
        });
    }
    /** Ends the hold: the private code stays. So does any login with it. */
    async cancelPrivateCodeReset() {
        await this.#call({ method: "DELETE", path: "/v1/private-code/resets", session: true });
    }
    /** Sends a one-time code to the number that shall be the customer's. */
    async changeNumber(phone) {
        const body = { phone };
        const a = (await this.#call({ method: "POST", path: "/v1/number", session: true, body })).json;
        return new NumberChange(a.change, async (code) => {
            const body = { code };
            const r = await this.#call({ method: "POST", path: path("number", a.change, "complete"), session: true, body });
            return new Date(r.json.changes_at);
        });
    }
    /** Keeps the old number: in this session, or without one by the code that was sent to that number. */
    async cancelNumberChange(code) {
        if (code === undefined) {
            await this.#call({ method: "DELETE", path: "/v1/number", session: true });
            return;
        }
        const body = { code };
        await this.#call({ method: "POST", path: "/v1/number/cancel", body });
    }
    /** What has happened to the account lately, newest first. */
    async notices() {
        return (await this.#call({ method: "GET", path: "/v1/notices", session: true })).json.notices;
    }
    /** A payment that the customer is asked to authorise. All of a payment needs the scope "payment". */
    async payment(id) {
        return (await this.#call({ method: "GET", path: path("payments", id), session: true })).json;
    }
    /** Sends a one-time code that is good for this payment's terms alone, and returns until when. */
    async sendPaymentCode(id) {
        const a = (await this.#call({ method: "POST", path: path("payments", id, "code"), session: true })).json;
        return new Date(Date.now() + a.expires_in * 1000);
    }
    /** Authorises a payment with its code and the terms that the customer was shown. Any others void it. */
    async authorisePayment(id, code, { amount, currency, payee, account }) {
        const body = { code, amount, currency, payee, ...(account === undefined ? {} : { account }) };
        return (await this.#call({ method: "POST", path: path("payments", id, "authorise"), session: true, body })).json;
    }
    /** The customer's records of a kind, for example "profile". */
    collection(name) {
        return new Collection(name, (r) => this.#call({ ...r, session: true }));
    }
    /** The customer's documents in a collection. */
    blobs(collection) {
        return new Blobs(collection, (r) => this.#call({ ...r, session: true }));
    }
    /** Sends a request with a fresh nonce, a fresh token, and again where that is right. */
    async #call(r) {
        let nonceGiven = false, tokenGiven = false, clockSet = false;
        for (let attempt = 0;;) {
            const access = r.session ? await this.#access() : undefined;
            let failure;
            let date = null;
            try {
                const answer = await this.#attempt(r, access);
                date = answer.headers.get("Date");
                if (answer.ok)
                    return { headers: answer.headers, json: r.bytes ? await answer.blob() : await read(answer) };
                failure = await problemOf(answer);
            }
            catch (err) {
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
                if (access && over(failure))
                    await this.#forget(access);
            }
            const wait = this.#wait(r, attempt++, failure);
            if (wait === undefined)
                throw failure;
            await new Promise((resolve) => setTimeout(resolve, wait));
            nonceGiven = false; // it may have gone stale while we waited
        }
    }
    async #attempt(r, access) {
        const target = this.#origin + r.path;
        const headers = {
            Accept: `${r.bytes ? "application/octet-stream" : "application/json"}, application/problem+json`,
            ...r.headers,
        };
        if (!r.unknown)
            headers["DPoP"] = await this.#proof(r.method, target, access);
        if (access)
            headers["Authorization"] = "DPoP " + access;
        const init = {
            method: r.method, headers, cache: "no-store", credentials: "omit", redirect: "error", referrerPolicy: "no-referrer",
            signal: AbortSignal.timeout(this.#timeout),
        };
        if (r.body instanceof Blob) {
            headers["Content-Type"] = "application/octet-stream";
            init.body = r.body;
        }
        else if (r.body !== undefined) {
            headers["Content-Type"] = "application/json";
            init.body = JSON.stringify(r.body);
        }
        const query = new URLSearchParams(r.query).toString();
        const answer = await this.#fetch(query ? `${target}?${query}` : target, init);
        this.#nonce = answer.headers.get("DPoP-Nonce") ?? this.#nonce;
        return answer;
    }
    /** A DPoP proof (RFC 9449 section 4.2) for one request. */
    async #proof(method, target, access) {
        this.#jwk ??= crypto.subtle.exportKey("jwk", this.#key.publicKey);
        const { kty, crv, x, y } = await this.#jwk;
        const header = { typ: "dpop+jwt", alg: "ES256", jwk: { kty, crv, x, y } };
        const claims = {
            jti: crypto.randomUUID(), htm: method, htu: target, iat: Math.floor((Date.now() + this.#skew) / 1000),
        };
        if (this.#nonce)
            claims["nonce"] = this.#nonce;
        if (access)
            claims["ath"] = base64url(await crypto.subtle.digest("SHA-256", utf8(access)));
        const text = base64url(utf8(JSON.stringify(header))) + "." + base64url(utf8(JSON.stringify(claims)));
        return text + "." + base64url(await crypto.subtle.sign({ name: "ECDSA", hash: "SHA-256" }, this.#key.privateKey, utf8(text)));
    }
    async #access() {
        const t = await this.#store.load();
        if (!t)
            throw new NotLoggedIn();
        if (Date.now() < t.accessExpiresAt - EARLY)
            return t.access;
        return (await this.#refresh(t.access)).access;
    }
    /** Replaces the tokens to which the stale access token belongs. All who need it wait for the same
     * exchange: a refresh token is good for one use, and the second ends the session. */
    #refresh(stale) {
        const exchange = async () => {
            const old = await this.#store.load();
            if (!old)
                throw new NotLoggedIn();
            if (old.access !== stale)
                return old; // another tab was faster
            const body = { refresh_token: old.refresh };
            try {
                const tokens = tokensOf((await this.#call({ method: "POST", path: "/v1/sessions/refresh", body })).json);
                await this.#store.save(tokens);
                return tokens;
            }
            catch (err) {
                if (err instanceof Problem && over(err))
                    await this.#forget(stale);
                throw err;
            }
        };
        this.#refreshing ??= (this.#store.lock ? this.#store.lock(exchange) : exchange()).finally(() => {
            this.#refreshing = undefined;
        });
        return this.#refreshing;
    }
    /** Forgets the session to which an access token belongs, unless another has begun since. */
    async #forget(access) {
        if ((await this.#store.load())?.access === access)
            await this.#store.save(undefined);
    }
    /** Dates the next proofs by the server's clock when the device's own is wrong. */
    #setClock(date) {
        const skew = date ? Date.parse(date) - Date.now() : NaN;
        if (!(Math.abs(skew - this.#skew) >= 20_000))
            return false;
        this.#skew = skew;
        return true;
    }
    /** How long to wait before r is sent once more; undefined when it must not be. */
    #wait(r, attempt, failure) {
        if (attempt >= RETRIES)
            return undefined;
        let wait = 200 * 2 ** attempt * (0.5 + Math.random() / 2);
        const repeatable = r.method === "GET";
        if (failure instanceof Problem) {
            switch (failure.status) {
                case 429: // refused before anything was done
                    break;
                case 503:
                    if (!failure.retryAfter && !repeatable)
                        return undefined;
                    break;
                case 502:
                case 504:
                    if (!repeatable)
                        return undefined;
                    break;
                default:
                    return undefined;
            }
            wait = failure.retryAfter ? failure.retryAfter * (1 + Math.random() / 4) : wait;
        }
        else if (failure instanceof NotLoggedIn || !repeatable) {
            return undefined; // there was no answer: the server may have done it
        }
        return wait > this.#maxWait ? undefined : wait;
    }
}
/** A sign-up that awaits the code sent by SMS. */
export class Registration {
    id;
    completeWith;
    constructor(id, 
    /** Makes the account, and says what vouches for the device's key where that is asked for. */
    completeWith) {
        this.id = id;
        this.completeWith = completeWith;
    }
    /** Makes the account. A weak-private-code costs no try of the code; registration-failed does. */
    complete(code, privateCode, deviceName) {
        return this.completeWith({ code, private_code: privateCode, device_name: deviceName });
    }
}
/** A login that awaits its second step. */
export class Login {
    id;
    passkey;
    completeWith;
    authorize;
    constructor(id, 
    /** What the platform's passkey call takes, when the method is "passkey". */
    passkey, 
    /** Ends the login and begins the session. device-pending means that all was right, but the device,
     * `members.device`, must be approved from another one by typing `members.number`. */
    completeWith, 
    /** Ends the login with an authorization code for a standard OAuth client, in place of a session of this one. */
    authorize) {
        this.id = id;
        this.passkey = passkey;
        this.completeWith = completeWith;
        this.authorize = authorize;
    }
    /** completeWith for a code by SMS or of an authenticator app. */
    complete(code, deviceName, scope) {
        return this.completeWith({ code, device_name: deviceName, ...(scope === undefined ? {} : { scope }) });
    }
    /** completeWith for a passkey, for which a browser asks the customer. */
    async completeByPasskey(deviceName, scope) {
        return this.completeWith({ passkey: await answerPasskey(this.passkey), device_name: deviceName, ...(scope === undefined ? {} : { scope }) });
    }
}
/** A step towards a new private code, which awaits the code sent by SMS. */
export class PrivateCodeReset {
    id;
    complete;
    constructor(id, 
    /** Returns from when on the second step may be done, or undefined when the code is changed. */
    complete) {
        this.id = id;
        this.complete = complete;
    }
}
/** A change of number that awaits the code sent to the new one. */
export class NumberChange {
    id;
    complete;
    constructor(id, 
    /** Proves the new number, and returns when it counts: a day later, unless somebody cancels. */
    complete) {
        this.id = id;
        this.complete = complete;
    }
}
/** Has the browser make a passkey, from the server's options to the answer in WebAuthn's JSON. */
async function createPasskey(options) {
    const { publicKey } = options;
    const made = await navigator.credentials.create({ publicKey: PublicKeyCredential.parseCreationOptionsFromJSON(publicKey) });
    return made.toJSON();
}
/** Has the browser answer a login's options with one of its passkeys. */
async function answerPasskey(options) {
    const { publicKey } = options;
    const found = await navigator.credentials.get({ publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(publicKey) });
    return found.toJSON();
}
/** One kind of the customer's records. */
export class Collection {
    name;
    #call;
    constructor(name, call) {
        this.name = name;
        this.#call = call;
    }
    /** Writes a record and returns it masked. Replacing one needs ifMatch. */
    async put(key, fields, condition) {
        return this.#one({ method: "PUT", path: path("records", this.name, key), headers: conditions(condition), body: fields });
    }
    /** Returns a record with its sensitive fields masked. */
    async get(key) {
        return this.#one({ method: "GET", path: path("records", this.name, key) });
    }
    /** Returns a record whole, or the named fields of it, for a purpose; the purpose goes into the trail. */
    async reveal(key, purpose, ...fields) {
        return this.#one({ method: "GET", path: path("records", this.name, key), query: { reveal: fields.join(",") || "all", purpose } });
    }
    /** Deletes a record; ifMatch makes sure that it is the one that was read. */
    async delete(key, condition) {
        await this.#call({ method: "DELETE", path: path("records", this.name, key), headers: conditions(condition) });
    }
    /** Up to limit records, masked, that come after a key. `next` is where the next page begins. */
    async list(limit, after) {
        const query = {};
        if (limit)
            query["limit"] = String(limit);
        if (after)
            query["after"] = after;
        const a = (await this.#call({ method: "GET", path: path("records", this.name), query })).json;
        return { records: (a.records ?? []).map((r) => stored(r, null)), next: a.next ?? "" };
    }
    async #one(r) {
        const a = await this.#call(r);
        return stored(a.json, a.headers.get("ETag"));
    }
}
/** One kind of the customer's documents, of up to 50 MiB. */
export class Blobs {
    collection;
    #call;
    constructor(collection, call) {
        this.collection = collection;
        this.#call = call;
    }
    /** Writes a document. Replacing one needs ifMatch. */
    async put(key, content, condition) {
        const a = await this.#call({ method: "PUT", path: path("blobs", this.collection, key), headers: conditions(condition), body: content });
        return { ...a.json, etag: a.headers.get("ETag") ?? "" };
    }
    /** Returns a document, for a purpose; the purpose goes into the trail. */
    async get(key, purpose) {
        const a = await this.#call({ method: "GET", path: path("blobs", this.collection, key), query: { purpose }, bytes: true });
        return { content: a.json, etag: a.headers.get("ETag") ?? "" };
    }
    /** Deletes a document; ifMatch makes sure that it is the one that was read. */
    async delete(key, condition) {
        await this.#call({ method: "DELETE", path: path("blobs", this.collection, key), headers: conditions(condition) });
    }
}
/** Makes a device key whose private half WebCrypto never shows. */
export function newDeviceKey() {
    return crypto.subtle.generateKey({ name: "ECDSA", namedCurve: "P-256" }, false, ["sign", "verify"]);
}
/** Returns the device key of that name from IndexedDB, made at the first call. */
export async function openDeviceKey(name) {
    const fresh = await newDeviceKey();
    return database("readwrite", (s) => s.get("key " + name), (found, s) => {
        if (found)
            return found;
        s.put(fresh, "key " + name);
        return fresh;
    });
}
/** Returns a store that keeps the session of that name in IndexedDB, sealed with AES-GCM under a key that
 * WebCrypto does not show, and lets one tab refresh at a time. */
export async function openSessionStore(name) {
    const fresh = await crypto.subtle.generateKey({ name: "AES-GCM", length: 256 }, false, ["encrypt", "decrypt"]);
    const key = await database("readwrite", (s) => s.get("wrap " + name), (found, s) => {
        if (found)
            return found;
        s.put(fresh, "wrap " + name);
        return fresh;
    });
    const slot = "session " + name;
    const additionalData = utf8(slot);
    return {
        async load() {
            const sealed = await database("readonly", (s) => s.get(slot), (v) => v);
            if (!sealed)
                return undefined;
            const plain = await crypto.subtle.decrypt({ name: "AES-GCM", iv: sealed.iv, additionalData }, key, sealed.data);
            return JSON.parse(new TextDecoder().decode(plain));
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
        async lock(fn) {
            let result;
            await navigator.locks.request("strongroom " + name, async () => {
                result = await fn();
            });
            return result;
        },
    };
}
/** Forgets key and session of that name: the device is gone, and a new one must be approved. */
export async function forgetDevice(name) {
    await database("readwrite", (s) => {
        s.delete("session " + name);
        s.delete("wrap " + name);
        return s.delete("key " + name);
    }, () => undefined);
}
/** Runs one request and what follows from it in one transaction of this client's IndexedDB. */
async function database(mode, ask, then) {
    const db = await new Promise((resolve, reject) => {
        const opening = indexedDB.open("strongroom", 1);
        opening.onupgradeneeded = () => opening.result.createObjectStore("device");
        opening.onsuccess = () => resolve(opening.result);
        opening.onerror = () => reject(opening.error);
    });
    try {
        return await new Promise((resolve, reject) => {
            const transaction = db.transaction("device", mode, { durability: "strict" });
            const store = transaction.objectStore("device");
            let result;
            const asked = ask(store);
            asked.onsuccess = () => {
                result = then(asked.result, store);
            };
            transaction.oncomplete = () => resolve(result);
            transaction.onabort = transaction.onerror = () => reject(transaction.error);
        });
    }
    finally {
        db.close();
    }
}
function memoryStore() {
    let tokens;
    return {
        load: async () => tokens,
        save: async (t) => {
            tokens = t;
        },
    };
}
function tokensOf(json) {
    const a = json;
    if (a?.token_type !== "DPoP" || !a.access_token || !a.refresh_token)
        throw new Error("the answer holds no DPoP-bound tokens");
    return {
        access: a.access_token, accessExpiresAt: Date.now() + a.expires_in * 1000, refresh: a.refresh_token,
        session: a.session, customer: a.customer, device: a.device,
    };
}
function stored(r, etag) {
    return { ...r, fields: (r.fields ?? {}), etag: etag ?? `"${r.version}"` };
}
/** The session has ended, whatever is tried. */
function over(p) {
    return ["invalid-token", "session-revoked", "invalid-refresh-token", "this-device-revoked"].includes(p.slug);
}
function conditions(c) {
    if (!c)
        return {};
    return "ifMatch" in c ? { "If-Match": c.ifMatch } : { "If-None-Match": "*" };
}
/** Joins escaped segments; one that a server would take for a direction is refused. */
function path(...segments) {
    return "/v1" + segments.map((s) => {
        if (s === "" || s === "." || s === "..")
            throw new TypeError(`${JSON.stringify(s)} cannot stand in an address`);
        return "/" + encodeURIComponent(s);
    }).join("");
}
async function read(answer) {
    if (answer.status === 204)
        return undefined;
    if (!isType(answer, "application/json"))
        throw new Error("the answer is not application/json");
    try {
        return await answer.json();
    }
    catch {
        throw new Error("the answer is not the JSON that was expected"); // the cause might repeat a value
    }
}
function isType(answer, want) {
    return (answer.headers.get("Content-Type") ?? "").split(";")[0]?.trim() === want;
}
async function problemOf(answer) {
    const after = answer.headers.get("Retry-After") ?? "";
    const retryAfter = /^\d+$/.test(after) ? Number(after) * 1000 : Math.max(0, (Date.parse(after) || Date.now()) - Date.now());
    const id = answer.headers.get("X-Request-Id") ?? "";
    if (!isType(answer, "application/problem+json")) {
        return new Problem("", answer.status, "the answer is not one of Strongroom's; is this its address?", {}, id, retryAfter);
    }
    const { type, detail, ...members } = (await answer.json());
    const slug = typeof type === "string" && type.startsWith(PROBLEM) ? type.slice(PROBLEM.length) : "";
    return new Problem(slug, answer.status, typeof detail === "string" ? detail : "", members, id, retryAfter);
}
function utf8(s) {
    return new TextEncoder().encode(s);
}
function base64url(bytes) {
    return btoa(String.fromCharCode(...new Uint8Array(bytes))).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}
