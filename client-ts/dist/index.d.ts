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
type Answer<Op extends keyof operations> = operations[Op]["responses"] extends infer R ? {
    [Status in keyof R & (200 | 201 | 202)]: R[Status] extends {
        content: {
            "application/json": infer Body;
        };
    } ? Body : never;
}[keyof R & (200 | 201 | 202)] : never;
/** One of the customer's devices. */
export type Device = Schemas["DeviceView"];
/** The session as the server knows it. */
export type Session = Answer<"get-session">;
/** A field's value, as JSON has it. */
export type Fields = Record<string, unknown>;
/** An encrypted document of the customer; its sensitive fields are masked unless `reveal` returned it. */
export type StoredRecord = Omit<Schemas["RecordView"], "fields"> & {
    fields: Fields;
    etag: string;
};
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
export declare class Problem extends Error {
    /** The stable name of the problem, such as "login-failed"; "" when the answer was none of Strongroom's. */
    readonly slug: string;
    /** The HTTP status. */
    readonly status: number;
    readonly detail: string;
    /** The problem's other members, such as `device` or `errors`. */
    readonly members: Record<string, unknown>;
    /** Quote it when you ask the operator. */
    readonly requestID: string;
    /** How long to wait before another attempt, in milliseconds; 0 when not said. */
    readonly retryAfter: number;
    readonly name = "Problem";
    constructor(
    /** The stable name of the problem, such as "login-failed"; "" when the answer was none of Strongroom's. */
    slug: string, 
    /** The HTTP status. */
    status: number, detail: string, 
    /** The problem's other members, such as `device` or `errors`. */
    members: Record<string, unknown>, 
    /** Quote it when you ask the operator. */
    requestID: string, 
    /** How long to wait before another attempt, in milliseconds; 0 when not said. */
    retryAfter: number);
    /** What is wrong with which field, for invalid-record and the like. */
    get fieldErrors(): {
        field: string;
        message: string;
    }[];
}
/** The operation needs a session and there is none. */
export declare class NotLoggedIn extends Error {
    readonly name = "NotLoggedIn";
    constructor();
}
/** Says under which circumstances a record is written or deleted. */
export type Condition = {
    ifMatch: string;
} | {
    ifNew: true;
};
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
export declare class Strongroom {
    #private;
    constructor(o: Options);
    /** Starts the registration of a mobile number; the answer is the same for numbers that have an account. */
    register(phone: string): Promise<Registration>;
    /** Starts a login. It succeeds whatever is given, so that nobody learns who is a customer. */
    login(phone: string, privateCode: string): Promise<Login>;
    /** The session as this device keeps it, without asking the server; undefined when there is none. */
    tokens(): Promise<Tokens | undefined>;
    /** The session as the server knows it. */
    session(): Promise<Session>;
    /** Ends the session on the server and forgets it here. */
    logout(): Promise<void>;
    /** All of the customer's devices. */
    devices(): Promise<Device[]>;
    /** Lets a pending device in. The number is what the customer reads on that device, where it came as
     * `members.number`, and types into this one: never show it here. After three wrong ones (wrong-number) the
     * device is refused for good. */
    approveDevice(device: string, number: string): Promise<void>;
    /** Shuts a device out and ends its sessions at once. */
    revokeDevice(device: string): Promise<void>;
    /** The customer's records of a kind, for example "profile". */
    collection(name: string): Collection;
}
/** A sign-up that awaits the code sent by SMS. */
export declare class Registration {
    readonly id: string;
    /** Makes the account. A weak-private-code costs no try of the code; registration-failed does. */
    readonly complete: (code: string, privateCode: string, deviceName: string) => Promise<Answer<"complete-registration">>;
    constructor(id: string, 
    /** Makes the account. A weak-private-code costs no try of the code; registration-failed does. */
    complete: (code: string, privateCode: string, deviceName: string) => Promise<Answer<"complete-registration">>);
}
/** A login that awaits the code sent by SMS. */
export declare class Login {
    readonly id: string;
    /** Ends the login and begins the session. device-pending means that all was right, but the device,
     * `members.device`, must be approved from another one by typing `members.number`. */
    readonly complete: (code: string, deviceName: string) => Promise<Tokens>;
    constructor(id: string, 
    /** Ends the login and begins the session. device-pending means that all was right, but the device,
     * `members.device`, must be approved from another one by typing `members.number`. */
    complete: (code: string, deviceName: string) => Promise<Tokens>);
}
/** One kind of the customer's records. */
export declare class Collection {
    #private;
    readonly name: string;
    constructor(name: string, call: (r: Request) => Promise<Received>);
    /** Writes a record and returns it masked. Replacing one needs ifMatch. */
    put(key: string, fields: Fields, condition?: Condition): Promise<StoredRecord>;
    /** Returns a record with its sensitive fields masked. */
    get(key: string): Promise<StoredRecord>;
    /** Returns a record whole, or the named fields of it, for a purpose; the purpose goes into the trail. */
    reveal(key: string, purpose: string, ...fields: string[]): Promise<StoredRecord>;
    /** Deletes a record; ifMatch makes sure that it is the one that was read. */
    delete(key: string, condition?: Condition): Promise<void>;
    /** Up to limit records, masked, that come after a key. `next` is where the next page begins. */
    list(limit?: number, after?: string): Promise<{
        records: StoredRecord[];
        next: string;
    }>;
}
/** Makes a device key whose private half WebCrypto never shows. */
export declare function newDeviceKey(): Promise<CryptoKeyPair>;
/** Returns the device key of that name from IndexedDB, made at the first call. */
export declare function openDeviceKey(name: string): Promise<CryptoKeyPair>;
/** Returns a store that keeps the session of that name in IndexedDB, sealed with AES-GCM under a key that
 * WebCrypto does not show, and lets one tab refresh at a time. */
export declare function openSessionStore(name: string): Promise<SessionStore>;
/** Forgets key and session of that name: the device is gone, and a new one must be approved. */
export declare function forgetDevice(name: string): Promise<void>;
export {};
