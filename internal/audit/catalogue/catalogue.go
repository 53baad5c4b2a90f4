// Package catalogue lists every action that the trail can hold: what it means, what it is done to, what
// of it is sealed, and which class of OCSF it is.
//
// The promise: an action that the program declares is here and nothing else is; a test reads the
// program's source and compares, and writes the table of docs/audit.md from this list.
package catalogue

// The OCSF classes that Strongroom's events are of, and their activities. The numbers are those of the
// OCSF schema.
const (
	AccountChange  = 3001
	Authentication = 3002
	EntityChange   = 3004 // Entity Management
	APIActivity    = 6003
	Datastore      = 6005 // Datastore Activity

	Other = 99 // in every class: an activity that the class has no number for
)

// Action is an entry.
type Action struct {
	Name     string   // "vault.record.read": room, thing, verb
	Does     string   // for people, in a few words
	On       string   // the form of the event's resource, capitals for what varies; empty for none
	Seals    []string // names of the personal part, beside "address" and "key", which any event may have
	Outcomes string   // empty for granted, denied and failed
	Class    int      // of OCSF
	Activity int      // of the class
}

const (
	grantedOnly = "granted"
	refusedOnly = "denied, failed"
)

// All is the list, ordered by name.
var All = []Action{
	{Name: "assurance.check.run", Does: "a check was run; its evidence has this digest, the reason is what it found", On: "check CHECK vVERSION sha256:HEX", Outcomes: grantedOnly, Class: APIActivity, Activity: 2},
	{Name: "assurance.checks.ask", Does: "somebody had checks run", On: "N checks", Class: APIActivity, Activity: 2},
	{Name: "assurance.claim.state", Does: "a claim changed its state", On: "claim CLAIM STATE", Outcomes: grantedOnly, Class: EntityChange, Activity: 3},
	{Name: "assurance.claims.read", Does: "claims, their evidence or their history were read", On: "claims, or history of claims, or of claim CLAIM", Class: APIActivity, Activity: 2},
	{Name: "assurance.evidence.export", Does: "a bundle of evidence was made for an auditor", On: "evidence from MOMENT to MOMENT", Class: APIActivity, Activity: 2},
	{Name: "assurance.improvement.add", Does: "an improvement was planned", On: "improvement ACTION", Seals: []string{"change"}, Class: EntityChange, Activity: 1},
	{Name: "assurance.improvement.end", Does: "an improvement was made, or given up", On: "improvement ACTION done or dropped", Seals: []string{"change"}, Class: EntityChange, Activity: 3},
	{Name: "assurance.improvements.list", Does: "the planned improvements were listed", On: "improvements", Class: EntityChange, Activity: 2},
	{Name: "assurance.report.close", Does: "staff closed a report about security", On: "report REPORT", Class: EntityChange, Activity: 3},
	{Name: "assurance.report.expire", Does: "a report that was closed a year ago was deleted", On: "report REPORT", Outcomes: grantedOnly, Class: EntityChange, Activity: 4},
	{Name: "assurance.report.read", Does: "staff opened a report about security", On: "report REPORT", Class: EntityChange, Activity: 2},
	{Name: "assurance.report.submit", Does: "somebody reported a concern about security, or was over a limit", On: "report REPORT", Class: EntityChange, Activity: 1},
	{Name: "assurance.reports.list", Does: "the reports were listed, unopened", On: "reports", Class: EntityChange, Activity: 2},
	{Name: "assurance.risk.put", Does: "a risk was entered or changed; the change is sealed", On: "risk RISK", Seals: []string{"change"}, Class: EntityChange, Activity: 3},
	{Name: "assurance.risk.review", Does: "a risk was reviewed and stands as it is written", On: "risk RISK", Class: EntityChange, Activity: 3},
	{Name: "assurance.risks.read", Does: "the register of risks was read", On: "risks", Class: EntityChange, Activity: 2},
	{Name: "assurance.risks.seed", Does: "a new installation got the starter register", On: "risks N", Outcomes: grantedOnly, Class: EntityChange, Activity: 1},
	{Name: "assurance.statement.decide", Does: "it was decided whether a control of Annex A applies", On: "control CONTROL", Seals: []string{"change"}, Class: EntityChange, Activity: 3},
	{Name: "assurance.statement.read", Does: "the statement of applicability was read", On: "statement of applicability", Class: EntityChange, Activity: 2},

	{Name: "audit.archive.hold", Does: "a legal hold stops archiving and deleting", On: "archive until DAY", Seals: []string{"reason"}, Class: EntityChange, Activity: 3},
	{Name: "audit.archive.remove", Does: "an archived object was deleted because its events outlived their retention", On: "events N to N sha256:HASH", Class: EntityChange, Activity: 4},
	{Name: "audit.archive.store", Does: "old events were moved to the archive", On: "events N to N sha256:HASH", Class: EntityChange, Activity: 3},
	{Name: "audit.checkpoints.list", Does: "checkpoints of the log were listed", On: "log", Class: APIActivity, Activity: 2},
	{Name: "audit.event.prove", Does: "a proof that an event is in the log was given", On: "event EVENT", Class: APIActivity, Activity: 2},
	{Name: "audit.event.record", Does: "events that a service sent were refused", On: "source NAME", Outcomes: refusedOnly, Class: APIActivity, Activity: 1},
	{Name: "audit.restore.accept", Does: "somebody declared that a backup was put back on purpose", On: "checkpoint SIZE:ROOT", Class: EntityChange, Activity: 3},
	{Name: "audit.search.delete", Does: "a saved search was deleted", On: "saved search NAME", Class: EntityChange, Activity: 4},
	{Name: "audit.search.list", Does: "the saved searches were listed", On: "saved searches", Class: EntityChange, Activity: 2},
	{Name: "audit.search.save", Does: "a search was saved under a name", On: "saved search NAME", Class: EntityChange, Activity: 1},
	{Name: "audit.sink.start", Does: "a server began to stream the trail to a sink", On: "sink NAME TYPE FORMAT, with or without personal parts", Outcomes: grantedOnly, Class: EntityChange, Activity: 2},
	{Name: "audit.tiles.read", Does: "entries of the log were read, without personal parts", On: "entries N to N, or log", Class: APIActivity, Activity: 2},
	{Name: "audit.trail.export", Does: "events were exported; sealed parts too when its resource says so", On: "trail, with or without personal parts", Seals: []string{"reason"}, Class: APIActivity, Activity: 2},
	{Name: "audit.trail.read", Does: "events were read, their personal parts too", On: "trail", Class: APIActivity, Activity: 2},
	{Name: "audit.trail.search", Does: "the trail was searched; the resource names what was asked by, the values are sealed", On: "search FIELDS, or saved search NAME, with or without \"revealed\"", Seals: []string{"query"}, Class: APIActivity, Activity: 2},
	{Name: "audit.trail.stream", Does: "a service began to follow the trail as it grows, without personal parts", On: "trail from index N", Class: APIActivity, Activity: 2},
	{Name: "audit.trail.verify", Does: "the trail was recomputed; reason \"findings\" when it does not hold", On: "trail", Class: APIActivity, Activity: 2},

	{Name: "backup.deed.approve", Does: "somebody approved a deed that needs two", On: "deed DEED", Class: EntityChange, Activity: 3},
	{Name: "backup.restore.drill", Does: "a snapshot was restored for trial and compared", On: "drill DRILL of SNAPSHOT", Class: Datastore, Activity: 5},
	{Name: "backup.retention.set", Does: "the retention of snapshots was changed", On: "retention RULES", Class: EntityChange, Activity: 3},
	{Name: "backup.snapshot.delete", Does: "a snapshot was deleted before its time", On: "snapshot SNAPSHOT", Class: Datastore, Activity: 7},
	{Name: "backup.snapshot.hold", Does: "a snapshot was put on hold", On: "snapshot SNAPSHOT", Seals: []string{"reason"}, Class: EntityChange, Activity: 3},
	{Name: "backup.snapshot.release", Does: "a hold was lifted", On: "snapshot SNAPSHOT", Class: EntityChange, Activity: 3},
	{Name: "backup.snapshot.restore", Does: "a snapshot was restored", On: "snapshot SNAPSHOT", Class: Datastore, Activity: 5},
	{Name: "backup.snapshot.run", Does: "a snapshot was taken and stored", On: "snapshot SNAPSHOT", Class: Datastore, Activity: 4},
	{Name: "backup.snapshot.verify", Does: "what repositories hold of a snapshot was read back", On: "snapshot SNAPSHOT", Class: Datastore, Activity: 1},
	{Name: "backup.snapshots.list", Does: "the snapshots were listed", On: "snapshots", Class: EntityChange, Activity: 2},
	{Name: "backup.snapshots.prune", Does: "snapshots past their retention were deleted", On: "snapshots", Class: Datastore, Activity: 7},

	{Name: "finding.finding.clear", Does: "something that was wrong is right again", On: "KIND SUBJECT", Outcomes: grantedOnly, Class: EntityChange, Activity: 3},
	{Name: "finding.finding.open", Does: "something is wrong", On: "KIND SUBJECT", Outcomes: grantedOnly, Class: EntityChange, Activity: 1},
	{Name: "finding.findings.list", Does: "the findings were listed", On: "findings", Class: EntityChange, Activity: 2},

	{Name: "identity.code.exchange", Does: "an OAuth client exchanged a code for a session", On: "session SESSION, or device DEVICE", Class: Authentication, Activity: 1},
	{Name: "identity.device.add", Does: "a device was added to an account; it waits for approval", On: "device DEVICE", Class: AccountChange, Activity: 10},
	{Name: "identity.device.approve", Does: "a device was approved by another of the customer's", On: "device DEVICE", Class: AccountChange, Activity: 10},
	{Name: "identity.device.check", Does: "the proof of a device did not hold", On: "session SESSION", Outcomes: refusedOnly, Class: Authentication, Activity: Other},
	{Name: "identity.device.expire", Does: "a new device was forgotten because nobody approved it in time", On: "device DEVICE", Outcomes: grantedOnly, Class: AccountChange, Activity: 11},
	{Name: "identity.device.list", Does: "a customer's devices were listed", On: "devices", Class: APIActivity, Activity: 2},
	{Name: "identity.device.lost", Does: "a device was reported lost and shut out", On: "device DEVICE", Class: AccountChange, Activity: 11},
	{Name: "identity.device.revoke", Does: "a device was removed, by the customer or for too many failures", On: "device DEVICE", Class: AccountChange, Activity: 11},
	{Name: "identity.factor.add", Does: "the enrolment of a second step began", On: "factor FACTOR", Class: AccountChange, Activity: 10},
	{Name: "identity.factor.enrol", Does: "a second step was proven, and counts", On: "factor FACTOR", Class: AccountChange, Activity: 10},
	{Name: "identity.factor.list", Does: "a customer's second steps were listed", On: "factors", Class: APIActivity, Activity: 2},
	{Name: "identity.factor.remove", Does: "a second step was removed", On: "factor FACTOR", Class: AccountChange, Activity: 11},
	{Name: "identity.factor.sms", Does: "codes by SMS were put off or on", On: "sms", Class: AccountChange, Activity: Other},
	{Name: "identity.honey.make", Does: "the customer whom the checks of logins attack was made", On: "device DEVICE", Outcomes: grantedOnly, Class: AccountChange, Activity: 1},
	{Name: "identity.honey.try", Does: "a check begins to attack the customer who is there for that; what follows has the same request", On: "honey customer, or old session SESSION", Outcomes: grantedOnly, Class: Authentication, Activity: Other},
	{Name: "identity.login.complete", Does: "a login ended: all factors held, or not", On: "session SESSION, or login LOGIN", Class: Authentication, Activity: 1},
	{Name: "identity.login.start", Does: "a login began", On: "login LOGIN", Seals: []string{"phone"}, Class: Authentication, Activity: Other},
	{Name: "identity.login.unlock", Does: "support lifted the blocks of an account", On: "account", Seals: []string{"reason"}, Class: AccountChange, Activity: Other},
	{Name: "identity.message.receipt", Does: "a provider reported what became of a message", On: "message MESSAGE", Class: APIActivity, Activity: 3},
	{Name: "identity.message.send", Does: "a message was handed to the SMS gateway", On: "message MESSAGE", Class: APIActivity, Activity: 1},
	{Name: "identity.notice.list", Does: "a customer looked at what has happened to the account", On: "notices", Class: APIActivity, Activity: 2},
	{Name: "identity.number.cancel", Does: "a change of number was cancelled", On: "number-change CHANGE", Class: AccountChange, Activity: Other},
	{Name: "identity.number.change", Does: "an account got its new number", On: "number-change CHANGE", Class: AccountChange, Activity: Other},
	{Name: "identity.number.complete", Does: "a new number was proven; it counts a day later", On: "number-change CHANGE", Seals: []string{"phone"}, Class: AccountChange, Activity: Other},
	{Name: "identity.number.start", Does: "a change of number began", On: "number-change CHANGE", Class: AccountChange, Activity: Other},
	{Name: "identity.payment.ask", Does: "a service asked for the authorisation of a payment", On: "payment PAYMENT", Class: APIActivity, Activity: 1},
	{Name: "identity.payment.authorise", Does: "a customer authorised a payment, or did not", On: "payment PAYMENT", Class: Authentication, Activity: Other},
	{Name: "identity.payment.code", Does: "a code for one payment was sent", On: "payment PAYMENT", Class: Authentication, Activity: Other},
	{Name: "identity.payment.read", Does: "a payment was looked at", On: "payment PAYMENT", Class: APIActivity, Activity: 2},
	{Name: "identity.payment.verify", Does: "a service used the authorisation of a payment, once", On: "payment PAYMENT", Class: APIActivity, Activity: 3},
	{Name: "identity.private-code.change", Does: "a customer changed the private code", On: "private code", Class: AccountChange, Activity: 3},
	{Name: "identity.private-code.reset-cancel", Does: "the wait for a new private code was ended, by the customer or by a login", On: "private code", Class: AccountChange, Activity: Other},
	{Name: "identity.private-code.reset-complete", Does: "a step towards a new private code was completed: the wait began, or the code was set", On: "reset RESET", Class: AccountChange, Activity: 4},
	{Name: "identity.private-code.reset-start", Does: "a customer who forgot the private code asked for another", On: "reset RESET", Seals: []string{"phone"}, Class: AccountChange, Activity: Other},
	{Name: "identity.recovery.proof", Does: "a proof of identity was brought for a new device", On: "device DEVICE", Class: AccountChange, Activity: Other},
	{Name: "identity.recovery.vouch", Does: "a member of staff vouched for a customer who lost a device or the number", On: "device DEVICE, or number", Seals: []string{"phone"}, Class: AccountChange, Activity: Other},
	{Name: "identity.registration.complete", Does: "a customer's account was made", On: "device DEVICE, or registration REGISTRATION", Seals: []string{"phone"}, Class: AccountChange, Activity: 1},
	{Name: "identity.registration.start", Does: "a registration began", On: "registration REGISTRATION", Seals: []string{"phone"}, Class: AccountChange, Activity: Other},
	{Name: "identity.session.check", Does: "an access token was refused", On: "session SESSION", Outcomes: refusedOnly, Class: Authentication, Activity: Other},
	{Name: "identity.session.introspect", Does: "a service asked whether a token is good", On: "session SESSION, or token", Class: APIActivity, Activity: 2},
	{Name: "identity.session.list", Does: "a customer's sessions were listed", On: "sessions", Class: APIActivity, Activity: 2},
	{Name: "identity.session.read", Does: "a customer looked at the session", On: "session SESSION", Class: APIActivity, Activity: 2},
	{Name: "identity.session.refresh", Does: "a session got new tokens", On: "session SESSION", Class: Authentication, Activity: 5},
	{Name: "identity.session.revoke", Does: "a session was ended", On: "session SESSION", Class: Authentication, Activity: 2},

	{Name: "keyring.blind-index.renew", Does: "indexes were made anew under a new version of the blind-index key", On: "service key NAME/VERSION N rows, N failed, TABLE", Outcomes: grantedOnly, Class: EntityChange, Activity: 3},
	{Name: "keyring.customer-key.compromise", Does: "a version of a customer's data key was declared compromised", On: "customer key CUSTOMER/VERSION", Outcomes: grantedOnly, Class: EntityChange, Activity: 3},
	{Name: "keyring.customer-key.create", Does: "a customer's data key was made", On: "customer key CUSTOMER/VERSION", Outcomes: grantedOnly, Class: EntityChange, Activity: 1},
	{Name: "keyring.customer-key.destroy", Does: "a customer's data key was destroyed", On: "customer key CUSTOMER/VERSION", Outcomes: grantedOnly, Class: EntityChange, Activity: 4},
	{Name: "keyring.customer-keys.rotate", Does: "the rotation of all customers' data keys began", On: "customer keys", Outcomes: grantedOnly, Class: EntityChange, Activity: 3},
	{Name: "keyring.kek.activate", Does: "a key-encryption key seals from now on", On: "kek VERSION", Outcomes: grantedOnly, Class: EntityChange, Activity: 3},
	{Name: "keyring.kek.compromise", Does: "a key-encryption key was declared compromised", On: "kek VERSION", Outcomes: grantedOnly, Class: EntityChange, Activity: 3},
	{Name: "keyring.kek.create", Does: "the first key-encryption key was made", On: "kek VERSION", Outcomes: grantedOnly, Class: EntityChange, Activity: 1},
	{Name: "keyring.kek.destroy", Does: "a key-encryption key was destroyed", On: "kek VERSION", Outcomes: grantedOnly, Class: EntityChange, Activity: 4},
	{Name: "keyring.kek.publish", Does: "a new key-encryption key was published to all servers", On: "kek VERSION", Outcomes: grantedOnly, Class: EntityChange, Activity: 1},
	{Name: "keyring.keks.recovery-export", Does: "the key-encryption keys were sealed to the recovery keys", On: "keks", Outcomes: grantedOnly, Class: EntityChange, Activity: 2},
	{Name: "keyring.keys.list", Does: "the versions of all keys were listed", On: "keys", Class: EntityChange, Activity: 2},
	{Name: "keyring.named-key.compromise", Does: "a version of a named key was declared compromised", On: "named key NAME/VERSION", Outcomes: grantedOnly, Class: EntityChange, Activity: 3},
	{Name: "keyring.named-key.create", Does: "a named key of the services got its first version", On: "named key NAME/VERSION", Outcomes: grantedOnly, Class: EntityChange, Activity: 1},
	{Name: "keyring.named-key.destroy", Does: "a version of a named key was destroyed", On: "named key NAME/VERSION", Outcomes: grantedOnly, Class: EntityChange, Activity: 4},
	{Name: "keyring.named-key.rotate", Does: "a named key got another version", On: "named key NAME/VERSION", Outcomes: grantedOnly, Class: EntityChange, Activity: 3},
	{Name: "keyring.root-move.abort", Does: "a move of the root key is being taken back", On: "root key ROOT to ROOT", Outcomes: grantedOnly, Class: EntityChange, Activity: 3},
	{Name: "keyring.root-move.begin", Does: "a move of the root key began: keys get a second wrap", On: "root key ROOT to ROOT", Outcomes: grantedOnly, Class: EntityChange, Activity: 1},
	{Name: "keyring.root-move.confirm", Does: "a move of the root key was confirmed: the old wraps are dropped", On: "root key ROOT to ROOT", Outcomes: grantedOnly, Class: EntityChange, Activity: 3},
	{Name: "keyring.root-move.end", Does: "a move of the root key came to its end", On: "root key ROOT to ROOT, and how it ended", Outcomes: grantedOnly, Class: EntityChange, Activity: 3},
	{Name: "keyring.root-move.open", Does: "either root key opens everything", On: "root key ROOT to ROOT", Outcomes: grantedOnly, Class: EntityChange, Activity: 3},
	{Name: "keyring.rotation.complete", Does: "a rotation came to its end", On: "kek VERSION, N keys, N failed", Outcomes: grantedOnly, Class: EntityChange, Activity: 3},
	{Name: "keyring.rotation.pause", Does: "a rotation was paused", On: "kek VERSION", Outcomes: grantedOnly, Class: EntityChange, Activity: 3},
	{Name: "keyring.rotation.resume", Does: "a paused rotation goes on", On: "kek VERSION", Outcomes: grantedOnly, Class: EntityChange, Activity: 3},
	{Name: "keyring.service-key.activate", Does: "a version of a service key is used from now on", On: "service key NAME/VERSION", Outcomes: grantedOnly, Class: EntityChange, Activity: 3},
	{Name: "keyring.service-key.compromise", Does: "a version of a service key was declared compromised", On: "service key NAME/VERSION", Outcomes: grantedOnly, Class: EntityChange, Activity: 3},
	{Name: "keyring.service-key.create", Does: "a service key was made", On: "service key NAME/VERSION", Outcomes: grantedOnly, Class: EntityChange, Activity: 1},
	{Name: "keyring.service-key.destroy", Does: "a version of a service key was destroyed", On: "service key NAME/VERSION", Outcomes: grantedOnly, Class: EntityChange, Activity: 4},
	{Name: "keyring.service-key.publish", Does: "a new version of a service key was published to all servers", On: "service key NAME/VERSION", Outcomes: grantedOnly, Class: EntityChange, Activity: 1},
	{Name: "keyring.service-key.retire", Does: "rows are no longer written under a version of a service key", On: "service key NAME/VERSION", Outcomes: grantedOnly, Class: EntityChange, Activity: 3},
	{Name: "keyring.states.accept", Does: "somebody declared that the states of keys in the database are right", On: "the states of all keys", Outcomes: grantedOnly, Class: EntityChange, Activity: 3},

	{Name: "policy.set.load", Does: "a server loaded the policies; the resource has their hash", On: "N policies sha256:HASH", Outcomes: grantedOnly, Class: EntityChange, Activity: 2},

	{Name: "transit.key.compromise", Does: "a service declared a version of a named key compromised", On: "key NAME vVERSION", Class: EntityChange, Activity: 3},
	{Name: "transit.key.create", Does: "a service made a named key", On: "key NAME", Class: EntityChange, Activity: 1},
	{Name: "transit.key.decrypt", Does: "a service decrypted under a named key", On: "key NAME", Class: APIActivity, Activity: Other},
	{Name: "transit.key.destroy", Does: "a service destroyed a version of a named key", On: "key NAME vVERSION", Class: EntityChange, Activity: 4},
	{Name: "transit.key.encrypt", Does: "a service encrypted under a named key", On: "key NAME", Class: APIActivity, Activity: Other},
	{Name: "transit.key.mac", Does: "a service made a MAC", On: "key NAME", Class: APIActivity, Activity: Other},
	{Name: "transit.key.read", Does: "a service asked what a named key is", On: "key NAME", Class: EntityChange, Activity: 2},
	{Name: "transit.key.rewrap", Does: "a ciphertext was brought to the newest version of its key", On: "key NAME", Class: APIActivity, Activity: Other},
	{Name: "transit.key.rotate", Does: "a service rotated a named key", On: "key NAME", Class: EntityChange, Activity: 3},
	{Name: "transit.key.sign", Does: "a service had something signed", On: "key NAME", Class: APIActivity, Activity: Other},
	{Name: "transit.key.verify", Does: "a service had a signature verified", On: "key NAME", Class: APIActivity, Activity: Other},
	{Name: "transit.key.verify-mac", Does: "a service had a MAC verified", On: "key NAME", Class: APIActivity, Activity: Other},

	{Name: "vault.blob.create", Does: "a blob was stored", On: "blob COLLECTION/KEY", Class: Datastore, Activity: 6},
	{Name: "vault.blob.delete", Does: "a blob was deleted", On: "blob COLLECTION/KEY", Class: Datastore, Activity: 7},
	{Name: "vault.blob.expire", Does: "a blob was deleted because it outlived its retention", On: "blob COLLECTION/KEY", Class: Datastore, Activity: 7},
	{Name: "vault.blob.read", Does: "a blob was read", On: "blob COLLECTION/KEY", Class: Datastore, Activity: 1},
	{Name: "vault.blob.update", Does: "a blob was replaced", On: "blob COLLECTION/KEY", Class: Datastore, Activity: 2},
	{Name: "vault.canary.plant", Does: "a value that belongs to nobody was sealed, to be searched for", On: "canary", Outcomes: grantedOnly, Class: Datastore, Activity: 6},
	{Name: "vault.collection.history", Does: "the declarations of a collection were read", On: "collection COLLECTION", Class: EntityChange, Activity: 2},
	{Name: "vault.collection.index", Does: "records were opened to bring their indexes in line with a declaration", On: "collection COLLECTION vVERSION N records, and whether that was all", Outcomes: grantedOnly, Class: Datastore, Activity: 2},
	{Name: "vault.collection.list", Does: "the collections were listed", On: "collections", Class: EntityChange, Activity: 2},
	{Name: "vault.collection.put", Does: "a collection was declared, or declared anew", On: "collection COLLECTION vVERSION sha256:HASH basis BASIS", Class: EntityChange, Activity: 3},
	{Name: "vault.collection.show", Does: "the declaration of a collection was read", On: "collection COLLECTION", Class: EntityChange, Activity: 2},
	{Name: "vault.customer.create", Does: "a service made a customer", On: "customer", Class: AccountChange, Activity: 1},
	{Name: "vault.customer.erase", Does: "a customer was erased; the record is the receipt", On: "customer", Seals: []string{"reason"}, Class: AccountChange, Activity: 6},
	{Name: "vault.customer.export", Does: "all records of a customer were exported whole", On: "customer", Class: Datastore, Activity: 4},
	{Name: "vault.customer.receipt", Does: "the receipt of an erasure was given", On: "customer", Class: Datastore, Activity: 1},
	{Name: "vault.history.trim", Does: "older versions of records were deleted that their collection no longer keeps", On: "collection COLLECTION", Class: Datastore, Activity: 7},
	{Name: "vault.import", Does: "rows were imported; each record has its own event", On: "collection COLLECTION", Class: Datastore, Activity: 5},
	{Name: "vault.record.batch", Does: "a service read many records at once; each record, or each customer, has its own event", On: "N records of N customers", Class: Datastore, Activity: 4},
	{Name: "vault.record.compare", Does: "an import found the record there already", On: "record COLLECTION/KEY", Class: Datastore, Activity: 1},
	{Name: "vault.record.create", Does: "a record was made", On: "record COLLECTION/KEY vVERSION", Class: Datastore, Activity: 6},
	{Name: "vault.record.delete", Does: "a record was deleted", On: "record COLLECTION/KEY vVERSION", Class: Datastore, Activity: 7},
	{Name: "vault.record.expire", Does: "a record was deleted because it outlived its retention", On: "record COLLECTION/KEY vVERSION", Class: Datastore, Activity: 7},
	{Name: "vault.record.history", Does: "a service listed the versions of a record", On: "record COLLECTION/KEY", Class: Datastore, Activity: 8},
	{Name: "vault.record.list", Does: "a customer's records were listed", On: "collection COLLECTION N records", Class: Datastore, Activity: 8},
	{Name: "vault.record.lookup", Does: "a service looked for customers by a field", On: "record COLLECTION/KEY field FIELD", Class: Datastore, Activity: 4},
	{Name: "vault.record.read", Does: "a record was read, masked, or in part whole", On: "record COLLECTION/KEY vVERSION, or records", Seals: []string{"revealed", "records"}, Class: Datastore, Activity: 1},
	{Name: "vault.record.try", Does: "a check opened records, and threw away what they hold", On: "records", Outcomes: grantedOnly, Class: Datastore, Activity: 1},
	{Name: "vault.record.update", Does: "a record was changed", On: "record COLLECTION/KEY vVERSION", Class: Datastore, Activity: 2},
	{Name: "vault.token.create", Does: "a service exchanged a value for a token", On: "token KIND", Class: Datastore, Activity: 6},
	{Name: "vault.token.delete", Does: "a token was deleted with its value", On: "token KIND", Class: Datastore, Activity: 7},
	{Name: "vault.token.reveal", Does: "a service exchanged a token for its value", On: "token KIND", Class: Datastore, Activity: 1},
}

var byName = func() map[string]*Action {
	m := make(map[string]*Action, len(All))
	for i := range All {
		m[All[i].Name] = &All[i]
	}
	return m
}()

// Find returns the entry of an action.
func Find(name string) (Action, bool) {
	if a, ok := byName[name]; ok {
		return *a, true
	}
	return Action{}, false
}
