// Pocket: a sample app over the TypeScript client. Each phone has a device key of its own, so the two are
// two devices of one customer. Nothing here is trusted by the server.
import { NotLoggedIn, Problem, Strongroom, forgetDevice, openDeviceKey, openSessionStore } from "./strongroom.js";

/** h makes an element. Texts stay texts: nothing becomes markup. */
function h(tag, props = {}, ...children) {
  const e = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) e.addEventListener(name.slice(2), value);
    else if (name in e && name !== "role") e[name] = value;
    else e.setAttribute(name, value);
  }
  e.append(...children.flat().filter((c) => c != null));
  return e;
}

const $ = (id) => document.getElementById(id);

/** What people are told. For anything else the server's own detail is good. */
const told = {
  "login-failed": "Number, private code or second step is not right. Which one, nobody is told.",
  "registration-failed": "That code is not right, or the number has an account already. Try to log in.",
  "session-revoked": "This session was ended. Log in again.",
  "this-device-revoked": "This phone was removed from the account, and has wiped itself. Log in on it as on a new one.",
  "invalid-token": "This session was ended. Log in again.",
  "version-mismatch": "Somebody changed this meanwhile. Look at it again before you save.",
  "step-up-needed": "Your login is too long ago for this. Log in again first.",
  "wrong-number": "That is not the number on the new phone. After three wrong ones it is refused for good.",
  "last-device": "This is your only device. Approve another one before you remove it.",
};

function words(err) {
  if (err instanceof NotLoggedIn) return "You are logged out.";
  if (err instanceof DOMException) return "No passkey was used.";
  if (!(err instanceof Problem)) return "The server cannot be reached. Is it still running?";
  const fields = err.fieldErrors.map((f) => `${f.field.replace(/^body\./, "").replaceAll("_", " ")}: ${f.message}`);
  return told[err.slug] ?? (fields.length ? fields.join("; ") : err.detail || "Something went wrong.");
}

/** Whether this page can have passkeys: the browser must know them, and they belong to a name, not to an address. */
const passkeys = "PublicKeyCredential" in globalThis && !/^[\d.]+$|:/.test(location.hostname);

/** The number that both phones use, since they are one person's. */
const numbers = {
  get() {
    let n = sessionStorage.getItem("number");
    if (!n) {
      // Ofcom keeps these for drama; nobody has one.
      n = "+44 7700 900" + String(crypto.getRandomValues(new Uint16Array(1))[0] % 1000).padStart(3, "0");
      sessionStorage.setItem("number", n);
    }
    return n;
  },
  set(n) {
    sessionStorage.setItem("number", n);
  },
};

/** The messages of the number, newest first, and who wants to know when one arrives. */
const inbox = { messages: [], listeners: new Set() };

const profile = [
  ["given_name", "First name"], ["family_name", "Last name"], ["date_of_birth", "Born"], ["email", "Email"],
  ["postcode", "Postcode"], ["city", "City"],
];

class Phone {
  constructor(id, name) {
    this.id = id;
    this.name = name;
    this.place = $(id);
    this.wire = h("ol", { className: "wire mono" });
    this.state = h("span", { className: "state" });
    this.screen = h("div", { className: "screen" });
    this.count = h("span", {}, "nothing yet");
    this.place.append(
      h("div", { className: "bar" }, h("b", {}, name), this.state),
      this.screen,
      h("details", {}, h("summary", {}, "On the wire: ", this.count), this.wire),
    );
  }

  async open() {
    const key = await openDeviceKey(this.id);
    const store = await openSessionStore(this.id);
    this.app = new Strongroom({ baseURL: location.origin, key, store, fetch: (url, init) => this.send(url, init) });
  }

  async start() {
    await this.open();
    if (await this.app.tokens()) await this.home("profile");
    else this.welcome();
  }

  /** send is fetch, told on the wire's list. */
  async send(url, init) {
    const began = performance.now();
    const line = (status, ok) => {
      const path = new URL(url).pathname.replace(/(_[0-9a-z]{4})[0-9a-z]+/g, "$1…");
      this.wire.prepend(h("li", {}, h("span", {}, `${init.method} ${path}`),
        h("span", { className: ok ? "ok" : "no" }, `${status} · ${Math.round(performance.now() - began)} ms`)));
      this.count.textContent = `${this.wire.childElementCount} requests, each signed`;
    };
    try {
      const answer = await fetch(url, init);
      line(answer.status, answer.ok);
      return answer;
    } catch (err) {
      line("no answer", false);
      throw err;
    }
  }

  show(state, ...children) {
    this.leave?.();
    this.leave = undefined;
    const [text, kind] = { out: ["logged out", ""], wait: ["waiting", "wait"], in: ["logged in", "in"] }[state];
    this.state.textContent = text;
    this.state.className = "state " + kind;
    this.place.classList.remove("welcome");
    this.screen.replaceChildren(...children.filter((c) => c != null));
  }

  /** form runs act when it is sent, and says what went wrong. */
  form(act, label, ...fields) {
    const error = h("p", { className: "note error", role: "alert", hidden: true });
    const button = h("button", { type: "submit" }, label);
    const form = h("form", {
      noValidate: false,
      onsubmit: async (e) => {
        e.preventDefault();
        if (button.disabled) return;
        button.disabled = true;
        error.hidden = true;
        try {
          await act(Object.fromEntries(new FormData(form)));
        } catch (err) {
          error.textContent = words(err);
          error.hidden = false;
        }
        button.disabled = false;
      },
    }, ...fields, error, button);
    return form;
  }

  async run(act) {
    try {
      await act();
    } catch (err) {
      if (err instanceof Problem && err.slug === "this-device-revoked") { // for good: wipe what the device keeps
        await forgetDevice(this.id);
        await this.open();
        return this.welcome(words(err));
      }
      if (err instanceof NotLoggedIn || err instanceof Problem && !(await this.app.tokens())) return this.welcome(words(err));
      this.screen.querySelector(".note.error")?.remove();
      this.screen.append(h("p", { className: "note error", role: "alert" }, words(err)));
    }
  }

  welcome(said) {
    this.show("out",
      h("img", { className: "badge", src: "icon.svg", alt: "" }),
      said ? h("p", { className: "note", role: "status" }, said) : null,
      h("h2", {}, this.id === "one" ? "Your money, and who you are, kept safe." : "Got a new phone? Log in on it."),
      h("p", { className: "soft" }, this.id === "one"
        ? "Open an account with a mobile number and a private code of your own."
        : "A new phone needs your private code, a text message, and a yes from the phone that you have."),
      h("div", { className: "actions" },
        h("button", { className: this.id === "one" ? "" : "second", name: "join", onclick: () => this.register() }, "Open account"),
        h("button", { className: this.id === "one" ? "second" : "", name: "enter", onclick: () => this.login() }, "Log in")),
    );
    this.place.classList.add("welcome");
  }

  number() {
    return h("label", {}, "Mobile number", h("input", { name: "phone", type: "tel", autocomplete: "off", required: true, value: numbers.get() }));
  }

  privateCode(hint) {
    return h("label", {}, "Private code", h("input", { name: "private", type: "password", autocomplete: "off", required: true, maxLength: 64 }),
      hint ? h("small", {}, hint) : null);
  }

  back() {
    return h("button", { className: "quiet", onclick: () => this.welcome() }, "Back");
  }

  register() {
    this.show("out",
      h("h2", {}, "Open your account"),
      h("p", { className: "soft" }, "This number is one of those that are reserved for drama. Nobody has it."),
      this.form(async ({ phone }) => {
        numbers.set(phone);
        const since = newest();
        this.confirm(await this.app.register(phone), phone, since);
      }, "Send me a code", this.number()),
      h("div", { className: "grow" }), this.back());
  }

  confirm(registration, phone, since) {
    this.show("wait",
      h("h2", {}, "Check your messages"),
      h("p", { className: "soft" }, "Enter the code that was sent to ", h("b", {}, phone), ", and choose a private code that only you know."),
      this.form(async (f) => {
        await registration.complete(f.code, f.private, this.name);
        const since = newest();
        this.prove(await this.app.login(phone, f.private), phone, since, "Your account is open. Log in for the first time: another code is on its way.");
      }, "Open account", ...this.code(since), this.privateCode("At least 8 characters, and not one of the first to be guessed.")),
      h("div", { className: "grow" }), this.back());
  }

  login() {
    let byPasskey = false;
    const form = this.form(async (f) => {
      numbers.set(f.phone);
      const since = newest();
      const login = await this.app.login(f.phone, f.private, byPasskey ? "passkey" : "sms");
      if (byPasskey) await this.enter(login.completeByPasskey(this.name));
      else this.prove(login, f.phone, since);
    }, "Continue", this.number(), this.privateCode());
    if (passkeys) {
      const choose = (is) => () => { byPasskey = is; };
      form.querySelector("[type=submit]").addEventListener("click", choose(false));
      form.append(h("button", { type: "submit", className: "second", name: "passkey", onclick: choose(true) }, "Use a passkey"));
    }
    this.show("out", h("h2", {}, "Log in"), form, h("div", { className: "grow" }), this.back());
  }

  /** enter waits for the end of a login and shows what comes of it. */
  async enter(completed) {
    try {
      await completed;
    } catch (err) {
      if (err instanceof Problem && err.slug === "device-pending") return this.pending(err.members.number);
      throw err;
    }
    await this.home("profile");
  }

  prove(login, phone, since, said) {
    this.show("wait",
      h("h2", {}, "One more code"),
      h("p", { className: "soft" }, said ?? "If number and private code are right, a code is on its way. It is not said which one was wrong."),
      this.form(({ code }) => this.enter(login.complete(code, this.name)), "Log in", ...this.code(since)),
      h("div", { className: "grow" }), this.back());
  }

  pending(number) {
    this.show("wait",
      h("h2", {}, "Approve this phone"),
      h("p", {}, "All three factors were right, but this phone is new."),
      h("p", { className: "note" }, "On your other phone, open Devices and type this number beside “", this.name, "”. Then log in here."),
      h("p", { className: "number" }, number),
      h("div", { className: "grow" }),
      h("button", { name: "enter", onclick: () => this.login() }, "I have approved it: log in"));
    others(this).forEach((p) => p.deviceArrived?.());
  }

  /** code is the field for a one-time code, and an offer to fill it from a message newer than since. */
  code(since) {
    const field = h("input", {
      name: "code", className: "code", inputMode: "numeric", autocomplete: "one-time-code", pattern: "[0-9]{6}", maxLength: 6, required: true,
      title: "six digits",
    });
    const value = h("b", {});
    const offer = h("button", { type: "button", className: "suggest", hidden: true, onclick: () => { field.value = value.textContent; offer.hidden = true; } },
      "From Messages", value);
    const look = () => {
      const message = inbox.messages.find((m) => m.sent_at > since && codeIn(m.text));
      if (message && value.textContent !== codeIn(message.text)) {
        value.textContent = codeIn(message.text);
        offer.hidden = false;
      }
    };
    // It is called after show, which ends what the screen before listened to.
    queueMicrotask(() => {
      inbox.listeners.add(look);
      this.leave = () => inbox.listeners.delete(look);
      look();
    });
    return [h("label", {}, "Code", field), offer];
  }

  tabs(current) {
    this.badge = h("i", { hidden: true });
    const tab = (name, label, ...more) => h("button", {
      role: "tab", "aria-selected": String(name === current), name: "tab-" + name, onclick: () => this.home(name),
    }, label, ...more);
    return h("div", { className: "tabs", role: "tablist" }, tab("profile", "Profile"), tab("devices", "Devices", this.badge), tab("session", "Security"));
  }

  async home(tab) {
    await this.run(async () => {
      const content = await { profile: () => this.profile(), devices: () => this.devices(), session: () => this.session() }[tab]();
      this.show("in", this.tabs(tab), ...content);
      this.deviceArrived = () => (tab === "devices" ? this.home("devices") : this.count_());
      if (tab !== "devices") await this.count_();
    });
  }

  /** count_ shows how many devices wait for a yes. */
  async count_() {
    const waiting = (await this.app.devices()).filter((d) => d.status === "pending").length;
    this.badge.textContent = String(waiting);
    this.badge.hidden = waiting === 0;
  }

  async profile(revealed) {
    const profiles = this.app.collection("profile");
    let record;
    try {
      record = revealed ?? await profiles.get("main");
    } catch (err) {
      if (!(err instanceof Problem && err.slug === "record-not-found")) throw err;
      return [h("h2", {}, "Who are you?"), h("p", { className: "soft" }, "It is sealed under a key that is yours alone before it touches a disk."), this.profileForm()];
    }
    const shown = profile.filter(([name]) => record.fields[name] != null);
    return [
      h("h2", {}, "Your profile"),
      h("dl", { className: "facts" }, shown.map(([name, label]) => h("div", {}, h("dt", {}, label), h("dd", {}, String(record.fields[name]))))),
      h("p", { className: "soft" }, revealed
        ? "Shown whole, for the purpose “show-to-customer”. That you looked is in the audit trail."
        : `Masked as the server sends it. Version ${record.version}.`),
      h("div", { className: "actions" },
        revealed ? h("button", { className: "second", name: "hide", onclick: () => this.home("profile") }, "Hide")
          : h("button", { className: "second", name: "reveal", onclick: () => this.reveal() }, "Show whole"),
        h("button", { name: "edit", onclick: () => this.edit() }, "Edit")),
    ];
  }

  async reveal() {
    await this.run(async () => {
      const content = await this.profile(await this.app.collection("profile").reveal("main", "show-to-customer"));
      this.show("in", this.tabs("profile"), ...content);
    });
  }

  async edit() {
    await this.run(async () => {
      const record = await this.app.collection("profile").reveal("main", "show-to-customer");
      this.show("in", this.tabs("profile"), h("h2", {}, "Edit your profile"), this.profileForm(record));
    });
  }

  profileForm(record) {
    const field = ([name, label]) => h("label", {}, label, h("input", {
      name, autocomplete: "off", type: { date_of_birth: "date", email: "email" }[name] ?? "text", required: name.endsWith("_name"),
      value: String(record?.fields[name] ?? ""),
    }));
    const [given, family, born, email, postcode, city] = profile.map(field);
    return this.form(async (values) => {
      const fields = { ...record?.fields, ...values };
      for (const [name, value] of Object.entries(fields)) if (value === "") delete fields[name];
      await this.app.collection("profile").put("main", fields, record ? { ifMatch: record.etag } : { ifNew: true });
      await this.home("profile");
    }, "Save", h("div", { className: "pair" }, given, family), born, email, h("div", { className: "pair" }, postcode, city));
  }

  async devices() {
    const all = await this.app.devices();
    return [
      h("h2", {}, "Your devices"),
      h("ul", { className: "devices" }, all.map((d) => h("li", { className: d.status },
        h("div", {}, h("h3", {}, d.name || "A device"),
          h("p", { className: "soft" }, { authorised: d.current ? "This phone" : "May log in", pending: "Wants to be let in. Is it you?", revoked: "Removed for good" }[d.status])),
        d.status === "revoked" || d.current ? null : h("div", { className: "actions" },
          d.status === "pending" ? this.form(async ({ number }) => {
            await this.app.approveDevice(d.device, number);
            await this.home("devices");
          }, "Approve", h("label", {}, "The number that it shows", h("input", {
            name: "number", inputMode: "numeric", autocomplete: "off", pattern: "[0-9]{3}", maxLength: 3, required: true, title: "three digits",
          }))) : null,
          h("button", { className: "small danger", name: "remove", onclick: () => this.run(async () => {
            await this.app.revokeDevice(d.device);
            await this.home("devices");
          }) }, d.status === "pending" ? "Refuse" : "Remove"))))),
    ];
  }

  async session() {
    const [all, factors] = await Promise.all([this.app.sessions(), this.app.factors()]);
    const time = (t) => new Date(t).toLocaleString([], { weekday: "short", hour: "2-digit", minute: "2-digit", hour12: false });
    const again = (act) => () => this.run(async () => {
      await act();
      await this.home("session");
    });
    const entry = (title, text, label, act) => h("li", {}, h("div", {}, h("h3", {}, title), h("p", { className: "soft" }, text)),
      label ? h("button", { className: "small danger", name: label.toLowerCase(), onclick: again(act) }, label) : null);
    return [
      h("h2", { className: "part" }, "Where you are logged in"),
      h("ul", { className: "entries" }, all.map((s) => entry(s.device_name || "A device",
        s.current ? `This one. Unused, it ends ${time(s.idle_expires_at)}.` : `Since ${time(s.logged_in_at)}${s.address ? ", from " + s.address : ""}`,
        s.current ? undefined : "End", () => this.app.revokeSession(s.session)))),
      h("h2", { className: "part" }, "How you log in"),
      h("ul", { className: "entries" },
        entry("Private code and phone", "Always both. The phone’s key cannot be copied."),
        entry("Code by SMS", factors.sms.enabled ? "Whoever has your SIM can read it." : "Put off"),
        factors.factors.filter((f) => f.status === "active").map((f) =>
          entry({ passkey: "Passkey", totp: "Authenticator app" }[f.kind], `Since ${time(f.added_at)}`, "Remove", () => this.app.removeFactor(f.factor)))),
      passkeys ? h("button", { name: "add-passkey", className: factors.factors.length ? "second" : "", onclick: again(() => this.app.enrolPasskey()) }, "Add a passkey")
        : h("p", { className: "soft" }, "Passkeys belong to a name: open this page at ", h("a", { href: `https://localhost:${location.port}/pocket/` }, "localhost"), " to try one."),
      h("button", { className: "second", name: "leave", onclick: () => this.run(async () => {
        await this.app.logout();
        this.welcome("You are logged out.");
      }) }, "Log out"),
    ];
  }
}

const phones = [new Phone("one", "Phone"), new Phone("two", "New phone")];
const others = (phone) => phones.filter((p) => p !== phone);

const codeIn = (text) => text.match(/\b[0-9]{6}\b/)?.[0];
const newest = () => inbox.messages[0]?.sent_at ?? "";

/** arrived shows the messages and tells who waits for one. */
function arrived(messages) {
  if (messages[0]?.sent_at === inbox.messages[0]?.sent_at && inbox.shown) return;
  const more = inbox.shown ? messages.length - inbox.messages.length : 0;
  inbox.messages = messages;
  inbox.shown = true;
  $("inbox").replaceChildren(...(messages.length ? messages.slice(0, 20).map((m) => {
    const code = codeIn(m.text);
    const [before, after] = code ? m.text.split(code) : [m.text, ""];
    const at = new Date(m.sent_at);
    return h("li", {}, before, code ? h("b", {}, code) : null, after, h("time", { dateTime: m.sent_at }, `${m.to} · ${at.toLocaleTimeString()}`));
  }) : [h("li", { className: "empty" }, "Nothing yet. Codes arrive here as soon as a phone asks for one.")]));
  if (more > 0 && document.querySelector("main").dataset.showing !== "messages") {
    $("unread").textContent = String(Number($("unread").textContent) + more);
    $("unread").hidden = false;
  }
  inbox.listeners.forEach((look) => look());
}

async function poll() {
  if (!document.hidden) {
    try {
      const to = numbers.get().replaceAll(/[\s()-]/g, "").replace(/^0(?=7)/, "+44");
      const answer = await fetch("/dev/inbox/search", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ to }) });
      if (answer.ok) arrived((await answer.json()).messages);
    } catch {
      // The server is away; the phones say so when they are used.
    }
  }
  setTimeout(poll, 700);
}

for (const button of document.querySelectorAll("[data-show]")) {
  button.addEventListener("click", () => {
    document.querySelector("main").dataset.showing = button.dataset.show;
    for (const b of document.querySelectorAll("[data-show]")) b.setAttribute("aria-pressed", String(b === button));
    if (button.dataset.show === "messages") {
      $("unread").textContent = "";
      $("unread").hidden = true;
    }
  });
}

$("restart").addEventListener("click", async () => {
  await Promise.all(phones.map((p) => forgetDevice(p.id)));
  sessionStorage.clear();
  location.reload();
});

arrived([]);
inbox.shown = false;
await Promise.all(phones.map((p) => p.start()));
poll();
