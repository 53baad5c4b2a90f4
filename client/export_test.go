package client

import (
	"context"
	"net/http"
	"time"
)

// Refreshing reports whether a refresh is under way.
func (c *Client) Refreshing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flight != nil
}

// SetSleep replaces the waits between attempts.
func (c *Client) SetSleep(fn func(context.Context, time.Duration) error) { c.sleep = fn }

// SetNow replaces the clock.
func (c *Client) SetNow(fn func() time.Time) { c.now = fn }

// ProblemOf reads an answer that is no success.
func ProblemOf(status int, contentType, retryAfter string, body []byte) *Problem {
	h := http.Header{"Content-Type": {contentType}, "Retry-After": {retryAfter}}
	return problemOf(answer{status, h, body}, time.Unix(0, 0))
}
