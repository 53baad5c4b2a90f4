# Reads the output of `go test -bench` and prints what was measured beside its baseline.

$1 == "pkg:" { pkg = $2; sub(/^strongroom\/(internal\/)?/, "", pkg) }

/^Benchmark/ {
  name = $1
  sub(/^Benchmark/, "", name)
  sub(/-[0-9]+$/, "", name) # the number of cores
  for (i = 3; i < NF; i += 2) value[pkg "." name, $(i + 1)] = $i
}

function show(number) { return sprintf(number < 10 ? "%.2f" : number < 100 ? "%.1f" : "%.0f", number) }

# width counts characters, which mawk's length does not.
function pad(text, width,    plain) {
  plain = text
  gsub(/µ|–|≤|≥/, "u", plain)
  return text sprintf("%*s", width > length(plain) ? width - length(plain) : 0, "")
}

function heading(text) { title = text }

# row prints a figure, its baseline, the one as a multiple of the other, and what is aimed at.
function row(what, figure, unit, base, baseUnit, aim,    f, b) {
  if (!((figure, unit) in value)) return
  if (title != "") {
    printf "\n%s\n", title
    title = ""
  }
  f = value[figure, unit]
  b = (base, baseUnit) in value ? value[base, baseUnit] : 0
  sub(/\/op/, "", unit)
  sub(/\/op/, "", baseUnit)
  line = "  " pad(what, 36) pad(show(f) " " unit, 20) pad(b ? show(b) " " baseUnit : "", 16) pad(b ? show(f / b) "x" : "", 10) (aim ? "aim " aim : "")
  sub(/ +$/, "", line)
  print line
}

# served prints what a kind of request costs the server, for each engine.
function served(operation, what, aim,    engines, i, ns, n, j, key, bare) {
  split("sqlite postgresql", engines, " ")
  split("1 16 64", ns, " ")
  for (i = 1; i <= 2; i++) {
    if (!(("e2e.Request/" operation "/" engines[i] "/64", "cpu-µs") in value)) continue
    printf "\n%s, %s, beside a bare TLS handler that answers with the same bytes (µs of the server's CPU)\n", what, engines[i]
    print "  clients      CPU    bare  verify  beyond verify  beyond proof and bare     req/s  bare req/s   ratio"
    for (j = 1; j <= 3; j++) {
      key = "e2e.Request/" operation "/" engines[i] "/" ns[j]
      bare = "e2e.Request/" operation "/bare/" ns[j]
      printf "  %7d  %7.0f  %6.0f  %6.0f  %13.0f  %21.0f  %8.0f  %10.0f  %5.2fx\n", ns[j], value[key, "cpu-µs"], value[bare, "cpu-µs"],
        value[key, "verify-µs"], value[key, "beyond-verify-µs"], value[key, "beyond-bare-µs"],
        value[key, "req/s"], value[bare, "req/s"], value[key, "x-bare-rate"]
    }
    if (aim != "") print "  aim: " aim
  }
}

END {
  heading("Seal and open beside raw AES-256-GCM, into memory that is there")
  split("300B 64KB", sizes, " ")
  for (i = 1; i <= 2; i++) {
    row("seal " sizes[i], "keyring/seal.Seal/seal-append/" sizes[i], "ns/op", "keyring/seal.Seal/raw-append/" sizes[i], "ns/op", i == 2 ? "≤ 1.2x" : "")
    row("open " sizes[i], "keyring/seal.Open/open-append/" sizes[i], "ns/op", "keyring/seal.Open/raw-append/" sizes[i], "ns/op", i == 2 ? "≤ 1.2x" : "")
  }

  heading("Durable write, group commit beside one transaction per call")
  split("1 16 64 256", counts, " ")
  for (i = 1; i <= 4; i++)
    row(counts[i] " callers", "db.Write/grouped/" counts[i], "ops/s", "db.Write/one-per-call/" counts[i], "ops/s", counts[i] == 64 ? "≥ 2.5x" : "")
  heading("Durable write, group commit beside a bare fdatasync of one caller")
  for (i = 1; i <= 4; i++)
    row(counts[i] " callers", "db.Write/grouped/" counts[i], "ops/s", "db.Write/fdatasync", "ops/s")

  heading("Check of a DPoP proof beside one raw P-256 verification: CPU")
  row("whole proof", "e2e.Request/dpop-verify", "cpu-µs", "e2e.Request/p256-verify", "cpu-µs")
  heading("The front door beside its bare handler, over TLS, client included")
  row("HTTP/1.1", "edge.Request/HTTP1/door", "ns/op", "edge.Request/HTTP1/bare", "ns/op")
  row("HTTP/2", "edge.Request/HTTP2/door", "ns/op", "edge.Request/HTTP2/bare", "ns/op")

  served("read", "Audited sealed read", "150 µs beyond verify")
  served("write", "Audited durable write", "250 µs beyond proof and bare")
  served("session", "Session check", "")

  heading("The trust page beside a handler that answers with as many bytes")
  row("page", "assurance.Page/page", "ns/op", "assurance.Page/static", "ns/op", "≤ 2x")

  heading("Start to ready beside the bare process")
  row("first, making keys and database", "e2e.Start/first", "ms", "e2e.Start/process", "ms")
  row("again", "e2e.Start/again", "ms", "e2e.Start/process", "ms", "< 1000 ms")
  heading("Memory after 100,000 records were written through the server, beside the empty server")
  row("resident", "e2e.Memory/100000", "rss-MB", "e2e.Memory/100000", "empty-MB", "< 120 MB")
  row("at its most", "e2e.Memory/100000", "peak-MB", "e2e.Memory/100000", "empty-MB")
  row("after a restart", "e2e.Memory/100000", "restarted-MB", "e2e.Memory/100000", "empty-MB")
  row("start to ready with all that", "e2e.Memory/100000", "start-ms", "e2e.Start/process", "ms")
}
