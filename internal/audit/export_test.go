package audit

import "time"

// Hurry shortens how often a silent feed gives a sign of life, and how long a reader has for a page.
func (f *Feed) Hurry(beat, write time.Duration) { f.beat, f.write = beat, write }
