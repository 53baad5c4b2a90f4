// The client against a running `strongroom dev`, which internal/e2e starts: STRONGROOM names its ready file,
// NODE_EXTRA_CA_CERTS its authority.
import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { readFileSync } from "node:fs";
import { request } from "node:https";
import { join } from "node:path";
import test from "node:test";
import { NotLoggedIn, Problem, Strongroom, newDeviceKey } from "../dist/index.js";

const { app: baseURL, service, data } = JSON.parse(readFileSync(process.env.READY_FILE, "utf8"));
let next = Number(process.env.FIRST_NUMBER ?? 0);
const number = () => "+447700900" + String(next++).padStart(3, "0");
const privateCode = "lighthouse harbour 41";

/** done are the requests that succeeded, of all tests. */
const done = new Set();

/** counting is fetch that remembers what was sent and what came back. */
function counting() {
  const seen = [];
  return [seen, async (url, init) => {
    const answer = await fetch(url, init);
    if (answer.ok) done.add(`${init.method} ${new URL(url).pathname}`);
    seen.push({ path: new URL(url).pathname, status: answer.status, headers: { ...init.headers } });
    return answer;
  }];
}

async function codeFor(phone, since, pattern = /\b\d{6}\b/) {
  for (const end = Date.now() + 30_000; Date.now() < end; await new Promise((r) => setTimeout(r, 50))) {
    const answer = await fetch(baseURL + "/dev/inbox/search", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ to: phone }) });
    const message = (await answer.json()).messages.find((m) => m.sent_at > since && pattern.test(m.text)); // customers are told of more than codes
    if (message) return { code: message.text.match(pattern)[0], at: message.sent_at };
  }
  throw new Error("no text message came");
}

async function device(extra = {}) {
  const [seen, fetch] = counting();
  return { seen, app: new Strongroom({ baseURL, key: await newDeviceKey(), fetch, ...extra }) };
}

async function customer() {
  const phone = number();
  const one = await device();
  const registration = await one.app.register(phone);
  let sent = await codeFor(phone, "");
  await registration.complete(sent.code, privateCode, "Ada's phone");
  const login = await one.app.login(phone, privateCode);
  sent = await codeFor(phone, sent.at);
  one.tokens = await login.complete(sent.code, "Ada's phone");
  return { ...one, phone, sent };
}

const refused = (slug) => (err) => err instanceof Problem && err.slug === slug;

test("a key that could be copied is refused", async () => {
  const key = await crypto.subtle.generateKey({ name: "ECDSA", namedCurve: "P-256" }, true, ["sign", "verify"]);
  assert.throws(() => new Strongroom({ baseURL, key }), /extractable/);
  for (const bad of ["http://127.0.0.1", "https://a.example/x", "https://u@a.example"]) {
    assert.throws(() => new Strongroom({ baseURL: bad, key }), TypeError);
  }
});

test("a customer's way: register, log in, records, devices, log out", async () => {
  const ada = await customer();
  assert.deepEqual(ada.seen.slice(0, 2).map((s) => [s.path, s.status]), [["/v1/registrations", 401], ["/v1/registrations", 202]], "one refusal, for the nonce");
  assert.equal(ada.seen.filter((s) => s.status === 401).length, 1, "the nonce is kept");

  const profile = ada.app.collection("profile");
  const first = await profile.put("main", { given_name: "Ada", family_name: "Lovelace", email: "ada@example.com" }, { ifNew: true });
  assert.equal(first.fields.given_name, "A****");
  assert.equal((await profile.reveal("main", "show-to-customer", "family_name")).fields.family_name, "Lovelace");
  await assert.rejects(profile.put("main", { given_name: "Ada", family_name: "King" }), refused("precondition-required"));
  const second = await profile.put("main", { given_name: "Ada", family_name: "King" }, { ifMatch: first.etag });
  await assert.rejects(profile.put("main", { given_name: "Ada", family_name: "Byron" }, { ifMatch: first.etag }), refused("version-mismatch"));
  await assert.rejects(profile.put("x", { given_name: "Ada", family_name: "K", email: "no" }), (e) => refused("invalid-record")(e) && e.fieldErrors[0].field === "email");
  assert.equal((await profile.get("main")).version, second.version);
  assert.equal((await profile.list(10)).records.length, 1);
  await assert.rejects(profile.get(".."), TypeError);
  await profile.delete("main", { ifMatch: second.etag });
  await assert.rejects(profile.get("main"), refused("record-not-found"));

  const two = await device();
  let login = await two.app.login(ada.phone, privateCode);
  let sent = await codeFor(ada.phone, ada.sent.at);
  const err = await login.complete(sent.code, "Tablet").catch((e) => e);
  assert.ok(refused("device-pending")(err));
  await ada.app.approveDevice(err.members.device, err.members.number);
  login = await two.app.login(ada.phone, privateCode);
  sent = await codeFor(ada.phone, sent.at);
  await login.complete(sent.code, "Tablet");
  assert.equal((await two.app.session()).device_name, "Tablet");
  await ada.app.revokeDevice(err.members.device);
  await assert.rejects(two.app.session(), refused("this-device-revoked"));
  assert.equal(await two.app.tokens(), undefined, "the session is forgotten");
  await assert.rejects(two.app.session(), NotLoggedIn);

  await ada.app.logout();
  await assert.rejects(ada.app.devices(), NotLoggedIn);
});

test("many requests that find the token expired refresh it once", async () => {
  let kept;
  const store = { load: async () => kept, save: async (t) => { kept = t; } };
  const phone = number();
  const key = await newDeviceKey();
  const [seen, fetch] = counting();
  const app = new Strongroom({ baseURL, key, store, fetch });
  const registration = await app.register(phone);
  let sent = await codeFor(phone, "");
  await registration.complete(sent.code, privateCode, "phone");
  const login = await app.login(phone, privateCode);
  sent = await codeFor(phone, sent.at);
  await login.complete(sent.code, "phone");

  const before = kept.refresh;
  kept = { ...kept, accessExpiresAt: 0 };
  await Promise.all(Array.from({ length: 12 }, () => app.devices()));
  assert.equal(seen.filter((s) => s.path === "/v1/sessions/refresh").length, 1);
  assert.notEqual(kept.refresh, before);

  // A refresh token that was spent ends the session once its successor is used: it was stolen, or this one is the
  // thief. Before, its answer may have been lost.
  kept = { ...kept, accessExpiresAt: 0 };
  await app.devices();
  kept = { ...kept, refresh: before, accessExpiresAt: 0 };
  await assert.rejects(app.devices(), refused("session-revoked"));
  assert.equal(kept, undefined);
});

test("a stolen token is worth nothing without the key, and a recorded request nothing at all", async () => {
  const ada = await customer();
  await ada.app.session();
  const { headers } = ada.seen.at(-1);
  const again = await fetch(baseURL + "/v1/session", { headers });
  assert.equal(again.status, 401);
  const thief = await device({ store: { load: async () => ada.tokens, save: async () => {} } });
  await assert.rejects(thief.app.session(), refused("invalid-token"));
});

test("what is not known to be undone is not sent twice", async () => {
  let sends = 0;
  const broken = async () => { sends++; throw new TypeError("connection reset"); };
  const { app } = await device({ fetch: broken });
  await assert.rejects(app.register("+447700900999"), TypeError);
  assert.equal(sends, 1);
  sends = 0;
  const busy = async () => { sends++; return new Response('{"type":"urn:strongroom:problem:login-busy"}', { status: 503, headers: { "Content-Type": "application/problem+json", "Retry-After": "0" } }); };
  const other = await device({ fetch: busy });
  await assert.rejects(other.app.register("+447700900999"), refused("login-busy"));
  assert.equal(sends, 1);
});

/** totp is the code of an authenticator app (RFC 6238) at a time in milliseconds. */
function totp(secret, at) {
  const bits = [...secret].map((c) => "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567".indexOf(c).toString(2).padStart(5, "0")).join("");
  const key = Buffer.from(bits.match(/.{8}/g).map((b) => parseInt(b, 2)));
  const step = Buffer.alloc(8);
  step.writeBigUInt64BE(BigInt(Math.floor(at / 30_000)));
  const mac = createHmac("sha1", key).update(step).digest();
  return String((mac.readUInt32BE(mac[19] & 15) & 0x7fffffff) % 1_000_000).padStart(6, "0");
}

/** ask asks for a payment as one of the operator's services does, over mutual TLS. */
function ask(payment) {
  const file = (name) => readFileSync(join(data, "tls", name));
  return new Promise((resolve, reject) => {
    const r = request(service + "/v1/payments", {
      method: "POST", ca: file("ca.pem"), cert: file("client.pem"), key: file("client.key"), minVersion: "TLSv1.3",
      headers: { "Content-Type": "application/json", "Strongroom-Purpose": "payment" },
    }, async (answer) => resolve(JSON.parse(Buffer.concat(await answer.toArray()))));
    r.on("error", reject);
    r.end(JSON.stringify(payment));
  });
}

test("a payment is authorised with its amount and payee", async () => {
  const ada = await customer();
  const terms = { amount: "49.90", currency: "EUR", payee: "Example Shop" };
  const { payment } = await ask({ customer: ada.tokens.customer, ...terms });
  await assert.rejects(ada.app.payment(payment), refused("insufficient-scope"));
  const login = await ada.app.login(ada.phone, privateCode);
  let sent = await codeFor(ada.phone, ada.sent.at);
  await login.complete(sent.code, "Ada's phone", "write payment");
  assert.equal((await ada.app.payment(payment)).payee, "Example Shop");
  assert.ok(await ada.app.sendPaymentCode(payment) > new Date());
  sent = await codeFor(ada.phone, sent.at);
  await assert.rejects(ada.app.authorisePayment(payment, sent.code, { ...terms, amount: "490.00" }), refused("payment-void"));
  const other = (await ask({ customer: ada.tokens.customer, ...terms })).payment;
  await ada.app.sendPaymentCode(other);
  sent = await codeFor(ada.phone, sent.at);
  assert.equal((await ada.app.authorisePayment(other, sent.code, terms)).status, "authorised");

  // A standard client beside the app gets a code of its own.
  const beside = await (await ada.app.login(ada.phone, privateCode)).authorize({
    code: (sent = await codeFor(ada.phone, sent.at)).code, client_id: "app", code_challenge: "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM", state: "x",
  });
  assert.ok(beside.code && beside.state === "x");
});

test("second steps, sessions and a lost device", async () => {
  const ada = await customer();
  const enrolled = await ada.app.enrolTOTP();
  const now = Date.now();
  await enrolled.confirm(totp(enrolled.secret, now));
  await ada.app.setSMS(false);
  assert.equal((await ada.app.factors()).sms.enabled, false);
  const two = await device();
  const login = await two.app.login(ada.phone, privateCode, "totp");
  // The next step's code: that of this one is used, and the server forgives a clock that is half a minute ahead.
  const err = await login.complete(totp(enrolled.secret, now + 30_000), "Tablet").catch((e) => e);
  assert.ok(refused("device-pending")(err));
  await assert.rejects(ada.app.approveDevice(err.members.device, err.members.number === "000" ? "001" : "000"), refused("wrong-number"));
  await ada.app.approveDevice(err.members.device, err.members.number);
  await ada.app.setSMS(true);
  await (await two.app.login(ada.phone, privateCode)).complete((await codeFor(ada.phone, ada.sent.at)).code, "Tablet");
  const other = (await ada.app.sessions()).find((s) => !s.current);
  await ada.app.revokeSession(other.session);
  await assert.rejects(two.app.session(), refused("invalid-token"));
  assert.equal(await ada.app.revokeOtherSessions(), 0);
  await ada.app.reportLost(err.members.device);
  assert.equal((await ada.app.devices()).find((d) => d.device === err.members.device).status, "revoked");
  await ada.app.removeFactor(enrolled.factor);
  assert.ok((await ada.app.notices()).some((n) => n.kind === "device-approved"));
});

test("another number, another private code, documents", async () => {
  const ada = await customer();
  const to = number();
  let change = await ada.app.changeNumber(to);
  const sent = await codeFor(to, "");
  const proven = await change.complete(sent.code);
  assert.ok(proven - Date.now() > 23 * 3_600_000);
  await (await device()).app.cancelNumberChange((await codeFor(ada.phone, ada.sent.at, /\b[0-9A-Z]{16}\b/)).code);
  change = await ada.app.changeNumber(to);
  await change.complete((await codeFor(to, sent.at)).code);
  await ada.app.cancelNumberChange();

  const another = "orchard 77 lantern";
  await ada.app.changePrivateCode(privateCode, another);
  await assert.rejects(ada.app.changePrivateCode(privateCode, "orchard 78 lantern"), refused("wrong-private-code"));
  const reset = await ada.app.resetPrivateCode(ada.phone);
  const usable = await reset.complete((await codeFor(ada.phone, ada.sent.at)).code, "meadow 31 anchor");
  assert.ok(usable - Date.now() > 23 * 3_600_000);
  await ada.app.cancelPrivateCodeReset();

  const scans = ada.app.blobs("profile");
  const scan = new Blob([crypto.getRandomValues(new Uint8Array(60_000))]);
  const stored = await scans.put("scan", scan, { ifNew: true });
  const read = await scans.get("scan", "show-to-customer");
  assert.deepEqual(await read.content.arrayBuffer(), await scan.arrayBuffer());
  assert.equal(read.etag, stored.etag);
  await scans.delete("scan", { ifMatch: read.etag });
});

test("a concern about security is told by nobody in particular", async () => {
  const { app } = await device();
  let headers;
  const spied = new Strongroom({ baseURL, key: await newDeviceKey(), fetch: async (url, init) => {
    headers = init.headers;
    const answer = await fetch(url, init);
    if (answer.ok) done.add(`${init.method} ${new URL(url).pathname}`);
    return answer;
  } });
  assert.match(await spied.reportConcern({ text: "The lock on the third door can be opened with a hairpin." }), /^rep_/);
  assert.ok(!("DPoP" in headers) && !("Authorization" in headers));
  await assert.rejects(app.reportConcern({ text: "short" }), (err) => err instanceof Problem && err.status === 422);
});

test("the client can do everything that the app listener offers", async () => {
  const document = await (await fetch(baseURL + "/openapi.json")).json();
  const inChromium = ["enrol-passkey", "confirm-passkey"]; // of TestPasskeyInChromium
  for (const [path, operations] of Object.entries(document.paths)) {
    const pattern = new RegExp("^" + path.replaceAll(/\{[^}]*\}/g, "[^/]+") + "$");
    for (const [method, { operationId }] of Object.entries(operations)) {
      const [is] = [...done].filter((d) => d.startsWith(method.toUpperCase() + " ") && pattern.test(d.slice(method.length + 1)));
      assert.ok(is || inChromium.includes(operationId), `${operationId} was not done`);
    }
  }
});
