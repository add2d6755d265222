package upstream

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// backoff returns the wait after failure n (from 0): the base doubled n times,
// at most the bound, shortened by up to half as jitter (in [0, 1)) says.
func (r Retry) backoff(n int, jitter float64) time.Duration {
	d := r.Base
	for ; n > 0 && d < r.MaxWait; n-- {
		d *= 2
	}
	d = min(d, r.MaxWait)
	return d - time.Duration(jitter*float64(d)/2)
}

// maxRetryAfter bounds the pause that an error reports, against overflow.
const maxRetryAfter = 24 * time.Hour

// retryAfter parses the header of that name (RFC 9110, 10.2.3): seconds or a
// date. Nonsense and the past are 0.
func retryAfter(v string, now time.Time) time.Duration {
	v = strings.TrimSpace(v)
	if s, err := strconv.ParseUint(v, 10, 32); err == nil {
		return min(time.Duration(s)*time.Second, maxRetryAfter)
	}
	t, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	return min(max(t.Sub(now), 0), maxRetryAfter)
}

// attempts counts the attempts at one thing.
type attempts struct {
	c      *Client
	failed int
}

// again returns nil when, after a wait, another attempt is due, and otherwise
// the error to give up with.
func (a *attempts) again(ctx context.Context, err error) error {
	var e *Error
	if !errors.As(err, &e) || !e.retry || ctx.Err() != nil {
		return err
	}
	a.failed++
	if a.failed >= a.c.cfg.Retry.Attempts {
		return err
	}
	wait := max(a.c.cfg.Retry.backoff(a.failed-1, a.c.cfg.Jitter()), e.RetryAfter)
	if wait > a.c.cfg.Retry.MaxWait {
		return err
	}
	if end, ok := ctx.Deadline(); ok && time.Until(end) <= wait {
		// Waiting would only turn this error into a time-out.
		return err
	}
	a.c.met.retried(e)
	a.c.cfg.Log.Debug().Err(e).Dur("wait", wait).Msg("registry request failed, trying again")
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return err
	}
}
