package upstream

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/shoal-dev/shoal/swarm"
)

// Kinds of failure beside those of package swarm: ErrNotFound (404, or a name
// that cannot exist), ErrUnavailable (no connection, 5xx, time-outs) and
// ErrNoRange. Every *Error wraps one, unless the caller's context was
// cancelled.
var (
	// ErrDenied: the registry answers 401 or 403; this node, with the
	// credentials it has, may not pull there.
	ErrDenied = swarm.ErrDenied
	// ErrRateLimited: the registry answers 429. Such errors also wrap
	// swarm.ErrUnavailable.
	ErrRateLimited = errors.New("rate limited by the registry")
	// ErrInvalid: the answer breaks the protocol, has the wrong digest or
	// size, or leads where this client does not go. Such errors also wrap
	// swarm.ErrUnavailable: of this source there is no more to hope for.
	ErrInvalid = errors.New("invalid answer of the registry")
)

// Error is what all operations of this package fail with. Its text holds no
// secret and may be shown to anyone.
type Error struct {
	// Op is what was done, for instance "get manifest".
	Op string
	// Registry is as the caller named it; Subject is the repository with the
	// reference, where there is one.
	Registry, Subject string
	// Status is the HTTP status, or 0 when it was not the status that failed.
	Status int
	// Code is the OCI error code of the answer, in lower case, or empty.
	Code string
	// Challenges are WWW-Authenticate values of a refusal by the registry that
	// a client may be given to answer: written anew from what was understood,
	// with realms that were checked. See "Trust".
	Challenges []string
	// RetryAfter is the pause that the registry asked for, or 0.
	RetryAfter time.Duration
	// Err is the cause, where there is one beside the status.
	Err error

	kind      error
	retry     bool // a new attempt may succeed
	elsewhere bool // the status came from where the registry redirected to
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op + " " + e.Registry)
	if e.Subject != "" {
		b.WriteString("/" + e.Subject)
	}
	if e.Status != 0 {
		fmt.Fprintf(&b, ": %d %s", e.Status, strings.ToLower(http.StatusText(e.Status)))
	}
	if e.Code != "" {
		b.WriteString(" (" + e.Code + ")")
	}
	if e.RetryAfter > 0 {
		fmt.Fprintf(&b, ", retry after %v", e.RetryAfter.Round(time.Millisecond))
	}
	switch {
	case e.Err != nil:
		b.WriteString(": " + e.Err.Error())
	case e.Status == 0 && e.kind != nil:
		b.WriteString(": " + e.kind.Error())
	}
	return b.String()
}

// Unwrap returns the kind and the cause.
func (e *Error) Unwrap() []error {
	var errs []error
	if e.kind != nil {
		errs = append(errs, e.kind)
	}
	if errors.Is(e.kind, ErrRateLimited) || errors.Is(e.kind, ErrInvalid) {
		errs = append(errs, swarm.ErrUnavailable)
	}
	if e.Err != nil {
		errs = append(errs, e.Err)
	}
	return errs
}

// Causes that this client itself finds.
var (
	errSilent = errors.New("no bytes for too long")
	errHeader = errors.New("no answer for too long")
	errClosed = errors.New("closed")
	errShort  = errors.New("body ends early")
)

// notFound is a failure before any request: what was asked for cannot exist.
func (k task) notFound(err error) *Error { return k.fail(swarm.ErrNotFound, err) }

// invalid is the verdict on an answer.
func (k task) invalid(format string, args ...any) *Error {
	return k.fail(ErrInvalid, fmt.Errorf(format, args...))
}

func (k task) fail(kind, err error) *Error {
	return &Error{Op: k.op, Registry: k.repo.Registry, Subject: k.subject(), kind: kind, Err: err}
}

// broken wraps the failure of a connection.
func (k task) broken(ctx context.Context, err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	e = k.fail(swarm.ErrUnavailable, err)
	if cause := context.Cause(ctx); cause != nil {
		// The connection failed because we gave it up. Say why.
		e.Err = cause
		switch {
		case errors.Is(cause, errSilent), errors.Is(cause, errHeader):
			e.retry = true
		case errors.Is(cause, context.DeadlineExceeded):
		case errors.Is(cause, context.Canceled):
			e.kind = nil
		default:
			e.kind, e.Err = nil, fmt.Errorf("%w: %w", context.Canceled, cause)
		}
		return e
	}
	e.retry = passing(err)
	return e
}

// passing says whether a failed connection is worth another attempt.
func passing(err error) bool {
	var (
		cert   *tls.CertificateVerificationError
		record tls.RecordHeaderError
		alert  tls.AlertError
		dns    *net.DNSError
	)
	switch {
	case errors.As(err, &cert), errors.As(err, &record), errors.As(err, &alert), errors.Is(err, errAddress):
		return false
	case errors.As(err, &dns):
		return !dns.IsNotFound
	}
	return true
}

// status turns a response that is no success into an error. It reads, and
// closes, the body.
func (k task) status(resp *http.Response, now time.Time) *Error {
	defer drop(resp)
	e := k.fail(nil, nil)
	e.Status = resp.StatusCode
	e.Code = errorCode(resp)
	switch s := resp.StatusCode; {
	case k.token && s >= 400 && s < 500 && s != http.StatusRequestTimeout && s != http.StatusTooManyRequests:
		// Whatever a token service has against the request: there is no token.
		e.kind = ErrDenied
	case s == http.StatusUnauthorized, s == http.StatusForbidden, s == http.StatusUnavailableForLegalReasons:
		e.kind = ErrDenied
	case s == http.StatusNotFound, s == http.StatusGone:
		e.kind = swarm.ErrNotFound
	case s == http.StatusTooManyRequests:
		e.kind, e.retry = ErrRateLimited, true
	case s == http.StatusRequestTimeout, s == http.StatusInternalServerError, s == http.StatusBadGateway,
		s == http.StatusServiceUnavailable, s == http.StatusGatewayTimeout:
		e.kind, e.retry = swarm.ErrUnavailable, true
	case s < http.StatusBadRequest, s == http.StatusRequestedRangeNotSatisfiable:
		e.kind = ErrInvalid
	default:
		e.kind = swarm.ErrUnavailable
	}
	if e.retry {
		e.RetryAfter = retryAfter(resp.Header.Get("Retry-After"), now)
	}
	return e
}

// maxErrorBody bounds what is read of the body of an error.
const maxErrorBody = 8 << 10

var codePattern = regexp.MustCompile(`^[A-Z][A-Z_]{0,63}$`)

// errorCode returns the first OCI error code of a response, or nothing.
func errorCode(resp *http.Response) string {
	p, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err != nil || len(p) == 0 {
		return ""
	}
	var body struct {
		Errors []struct {
			Code string `json:"code"`
		} `json:"errors"`
	}
	if json.Unmarshal(p, &body) != nil || len(body.Errors) == 0 {
		return ""
	}
	code := strings.ToUpper(body.Errors[0].Code)
	if !codePattern.MatchString(code) {
		return ""
	}
	return strings.ToLower(code)
}

// drop gives a response up. A short rest is read, so that the connection can
// be used again.
func drop(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, maxErrorBody)
	_ = resp.Body.Close()
}
