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
/** The JSON that an operation takes. */
type Body<Op extends keyof operations> = operations[Op] extends {
    requestBody: {
        content: {
            "application/json": infer B;
        };
    };
} ? B : never;
/** One of the customer's devices. */
export type Device = Schemas["DeviceView"];
/** The session as the server knows it. */
export type Session = Answer<"get-session">;
/** One of the customer's sessions. */
export type SessionEntry = Schemas["SessionView"];
/** A second step beside SMS. */
export type Factor = Schemas["FactorView"];
/** The customer's second steps, and what is the matter with codes by SMS. */
export type Factors = Answer<"list-factors">;
/** Something that has happened to the account. */
export type Notice = Schemas["NoticeView"];
/** A payment that the customer is asked to authorise. */
export type Payment = Schemas["PaymentView"];
/** What a payment is for: exactly this amount to exactly this payee. */
export type PaymentTerms = Pick<Payment, "amount" | "currency" | "payee" | "account">;
/** The second step of a login. SMS is a restricted authenticator: offer one of the others. */
export type Method = "sms" | "totp" | "passkey";
/** What completes a login: `code` or `passkey`. `scope` is "read", "write" or "payment", or several with a space
 * between them; a login that asks for nothing may write. */
export type LoginAnswer = Omit<Body<"complete-login">, "$schema">;
/** What completes a registration. */
export type RegistrationAnswer = Omit<Body<"complete-registration">, "$schema">;
/** What a standard OAuth client beside this one asks for (RFC 6749, RFC 7636). */
export type AuthorizationRequest = Omit<Body<"authorize-login">, "$schema" | "response_type" | "code_challenge_method">;
/** A document of the customer that is too large for a record. */
export type StoredBlob = Schemas["BlobView"] & {
    etag: string;
};
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
    /** The request is not proven by the device's key: whoever asks stays unknown. */
    unknown?: boolean;
    /** The answer is bytes. */
    bytes?: boolean;
}
interface Received {
    headers: Headers;
    /** The JSON of the answer, or its bytes as a Blob. */
    json: unknown;
}
export declare class Strongroom {
    #private;
    constructor(o: Options);
    /** Starts the registration of a mobile number; the answer is the same for numbers that have an account. */
    register(phone: string): Promise<Registration>;
    /**
     * Tells the operator's security staff of a weakness, and returns the reference to quote when writing again. It is bound
     * to no device and no session: the server is not told whose app it came from.
     */
    reportConcern(report: Body<"submit-security-report">): Promise<string>;
    /** Starts a login. It succeeds whatever is given, so that nobody learns who is a customer. */
    login(phone: string, privateCode: string, method?: Method): Promise<Login>;
    /** The session as this device keeps it, without asking the server; undefined when there is none. */
    tokens(): Promise<Tokens | undefined>;
    /** The session as the server knows it. */
    session(): Promise<Session>;
    /** Ends the session on the server and forgets it here. */
    logout(): Promise<void>;
    /** All of the customer's sessions, on all devices. */
    sessions(): Promise<SessionEntry[]>;
    /** Ends one of the customer's sessions at once. */
    revokeSession(session: string): Promise<void>;
    /** Ends all of the customer's sessions but this one, and returns how many. */
    revokeOtherSessions(): Promise<number>;
    /** All of the customer's devices. */
    devices(): Promise<Device[]>;
    /** Lets a pending device in. The number is what the customer reads on that device, where it came as
     * `members.number`, and types into this one: never show it here. After three wrong ones (wrong-number) the
     * device is refused for good. */
    approveDevice(device: string, number: string): Promise<void>;
    /** Shuts a lost device out at once, be it the last or this one. */
    reportLost(device: string): Promise<void>;
    /** Shuts a device out and ends its sessions at once. */
    revokeDevice(device: string): Promise<void>;
    /** The customer's second steps. */
    factors(): Promise<Factors>;
    /** Gives the customer a secret for an authenticator app, which counts once `confirm` has shown a code of it. Like
     * every change of second steps it needs a recent login (step-up-needed). */
    enrolTOTP(): Promise<{
        factor: string;
        secret: string;
        uri: string;
        confirm: (code: string) => Promise<void>;
    }>;
    /** Makes a passkey on this device, and returns its name. In a browser the customer is asked; elsewhere give the
     * platform's call, from options to its answer in WebAuthn's JSON. */
    enrolPasskey(create?: (options: unknown) => Promise<unknown>): Promise<string>;
    /** Puts codes by SMS off, once there is another second step, or on again. */
    setSMS(enabled: boolean): Promise<void>;
    /** Takes a second step away. */
    removeFactor(factor: string): Promise<void>;
    /** Changes the private code; all other sessions end. */
    changePrivateCode(current: string, changed: string): Promise<void>;
    /** Begins a step towards a new private code when the customer has forgotten theirs, without a session. There are
     * two: the first ends in a hold of a day, of which the customer is told, and the second sets the code. */
    resetPrivateCode(phone: string): Promise<PrivateCodeReset>;
    /** Ends the hold: the private code stays. So does any login with it. */
    cancelPrivateCodeReset(): Promise<void>;
    /** Sends a one-time code to the number that shall be the customer's. */
    changeNumber(phone: string): Promise<NumberChange>;
    /** Keeps the old number: in this session, or without one by the code that was sent to that number. */
    cancelNumberChange(code?: string): Promise<void>;
    /** What has happened to the account lately, newest first. */
    notices(): Promise<Notice[]>;
    /** A payment that the customer is asked to authorise. All of a payment needs the scope "payment". */
    payment(id: string): Promise<Payment>;
    /** Sends a one-time code that is good for this payment's terms alone, and returns until when. */
    sendPaymentCode(id: string): Promise<Date>;
    /** Authorises a payment with its code and the terms that the customer was shown. Any others void it. */
    authorisePayment(id: string, code: string, { amount, currency, payee, account }: PaymentTerms): Promise<Payment>;
    /** The customer's records of a kind, for example "profile". */
    collection(name: string): Collection;
    /** The customer's documents in a collection. */
    blobs(collection: string): Blobs;
}
/** A sign-up that awaits the code sent by SMS. */
export declare class Registration {
    readonly id: string;
    /** Makes the account, and says what vouches for the device's key where that is asked for. */
    readonly completeWith: (answer: RegistrationAnswer) => Promise<Answer<"complete-registration">>;
    constructor(id: string, 
    /** Makes the account, and says what vouches for the device's key where that is asked for. */
    completeWith: (answer: RegistrationAnswer) => Promise<Answer<"complete-registration">>);
    /** Makes the account. A weak-private-code costs no try of the code; registration-failed does. */
    complete(code: string, privateCode: string, deviceName: string): Promise<Answer<"complete-registration">>;
}
/** A login that awaits its second step. */
export declare class Login {
    readonly id: string;
    /** What the platform's passkey call takes, when the method is "passkey". */
    readonly passkey: unknown;
    /** Ends the login and begins the session. device-pending means that all was right, but the device,
     * `members.device`, must be approved from another one by typing `members.number`. */
    readonly completeWith: (answer: LoginAnswer) => Promise<Tokens>;
    /** Ends the login with an authorization code for a standard OAuth client, in place of a session of this one. */
    readonly authorize: (request: AuthorizationRequest) => Promise<Answer<"authorize-login">>;
    constructor(id: string, 
    /** What the platform's passkey call takes, when the method is "passkey". */
    passkey: unknown, 
    /** Ends the login and begins the session. device-pending means that all was right, but the device,
     * `members.device`, must be approved from another one by typing `members.number`. */
    completeWith: (answer: LoginAnswer) => Promise<Tokens>, 
    /** Ends the login with an authorization code for a standard OAuth client, in place of a session of this one. */
    authorize: (request: AuthorizationRequest) => Promise<Answer<"authorize-login">>);
    /** completeWith for a code by SMS or of an authenticator app. */
    complete(code: string, deviceName: string, scope?: string): Promise<Tokens>;
    /** completeWith for a passkey, for which a browser asks the customer. */
    completeByPasskey(deviceName: string, scope?: string): Promise<Tokens>;
}
/** A step towards a new private code, which awaits the code sent by SMS. */
export declare class PrivateCodeReset {
    readonly id: string;
    /** Returns from when on the second step may be done, or undefined when the code is changed. */
    readonly complete: (code: string, privateCode: string) => Promise<Date | undefined>;
    constructor(id: string, 
    /** Returns from when on the second step may be done, or undefined when the code is changed. */
    complete: (code: string, privateCode: string) => Promise<Date | undefined>);
}
/** A change of number that awaits the code sent to the new one. */
export declare class NumberChange {
    readonly id: string;
    /** Proves the new number, and returns when it counts: a day later, unless somebody cancels. */
    readonly complete: (code: string) => Promise<Date>;
    constructor(id: string, 
    /** Proves the new number, and returns when it counts: a day later, unless somebody cancels. */
    complete: (code: string) => Promise<Date>);
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
/** One kind of the customer's documents, of up to 50 MiB. */
export declare class Blobs {
    #private;
    readonly collection: string;
    constructor(collection: string, call: (r: Request) => Promise<Received>);
    /** Writes a document. Replacing one needs ifMatch. */
    put(key: string, content: Blob, condition?: Condition): Promise<StoredBlob>;
    /** Returns a document, for a purpose; the purpose goes into the trail. */
    get(key: string, purpose: string): Promise<{
        content: Blob;
        etag: string;
    }>;
    /** Deletes a document; ifMatch makes sure that it is the one that was read. */
    delete(key: string, condition?: Condition): Promise<void>;
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
