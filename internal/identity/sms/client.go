package sms

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// HTTPClient returns what gateways, and others outside, are asked with; a timeout of 0 means 5 s. It follows no
// redirects, since they would carry a code to where nobody configured.
func HTTPClient(timeout time.Duration, roots *x509.CertPool) *http.Client {
	if timeout <= 0 {
		timeout = 5 * time.Second
	}
	return &http.Client{
		Timeout:       timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
			ForceAttemptHTTP2:      true,
			TLSHandshakeTimeout:    timeout,
			ResponseHeaderTimeout:  timeout,
			MaxResponseHeaderBytes: 16 << 10,
			MaxIdleConnsPerHost:    8,
			IdleConnTimeout:        time.Minute,
		},
	}
}

// ask sends a request and returns the status and the beginning of the answer. The error holds no
// address, which may hold a password, and nothing of the message.
func ask(client *http.Client, r *http.Request) (status int, body []byte, err error) {
	r.Header.Set("User-Agent", "Strongroom")
	ctx, cancel := context.WithTimeout(r.Context(), client.Timeout)
	defer cancel()
	answer, err := client.Do(r.WithContext(ctx))
	if err != nil {
		return 0, nil, fmt.Errorf("sms: asking the gateway: %w", bare(err))
	}
	defer answer.Body.Close()
	// Reading to the end lets the connection be used again; a longer answer costs the connection.
	body, err = io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err == nil {
		err = ctx.Err() // when time is up, the gateway may see us leave and end its answer before we see it
	}
	if err != nil {
		return 0, nil, fmt.Errorf("sms: reading the gateway's answer: %w", err)
	}
	return answer.StatusCode, body, nil
}

// bare takes off what the HTTP client adds to an error.
func bare(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

// verdict is what an answer with a status means: nil for 2xx, ErrLater for 408 and 429, ErrRejected
// for a 4xx about the message, and a failure of the gateway otherwise. 401, 402 and 403 are about our
// account with the gateway, not about the message.
func verdict(status int, detail string) error {
	if detail != "" {
		detail = ", " + detail
	}
	switch {
	case status >= 200 && status <= 299:
		return nil
	case status == http.StatusRequestTimeout || status == http.StatusTooManyRequests:
		return fmt.Errorf("%w (status %d%s)", ErrLater, status, detail)
	case status == http.StatusUnauthorized || status == http.StatusPaymentRequired || status == http.StatusForbidden:
	case status >= 400 && status <= 499:
		return fmt.Errorf("%w (status %d%s)", ErrRejected, status, detail)
	}
	return fmt.Errorf("sms: the gateway answered with status %d%s", status, detail)
}

// endpoint checks the address of a gateway.
func endpoint(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return nil, errors.New("sms: the gateway's address must be https://host/path without user and fragment")
	}
	return u, nil
}
