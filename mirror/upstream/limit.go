package upstream

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Limit is what a registry says of how much it lets a caller pull: in a window of
// time Total requests, of which Left are left. Registries count by address, or by
// account.
type Limit struct {
	Total, Left int
	// Window is zero if the registry does not tell.
	Window time.Duration
}

// The headers, in the form that package net/http keeps them in, as Docker Hub sends them: "100;w=21600", and as the drafts of the IETF
// had them before they became one (draft-ietf-httpapi-ratelimit-headers-07).
const (
	limitHeader = "Ratelimit-Limit"
	leftHeader  = "Ratelimit-Remaining"
)

// maxWindow bounds the window that is believed, against overflow.
const maxWindow = 366 * 24 * time.Hour

// parseLimit reads the headers of an answer; false if there are none that make sense.
func parseLimit(h http.Header) (Limit, bool) {
	total, window, ok := parseQuota(h.Values(limitHeader))
	left, other, also := parseQuota(h.Values(leftHeader))
	if !ok || !also || total == 0 || left > total {
		return Limit{}, false
	}
	if window == 0 {
		window = other
	}
	return Limit{Total: total, Left: left, Window: window}, true
}

// parseQuota reads a number of requests and perhaps a window in seconds: "100;w=21600".
// Of lists only the first member counts, which the drafts have for the present limit.
func parseQuota(values []string) (n int, window time.Duration, ok bool) {
	if len(values) != 1 {
		return 0, 0, false
	}
	item, _, _ := strings.Cut(values[0], ",")
	fields := strings.Split(item, ";")
	count, err := strconv.ParseUint(strings.TrimSpace(fields[0]), 10, 31)
	if err != nil {
		return 0, 0, false
	}
	for _, f := range fields[1:] {
		name, value, _ := strings.Cut(strings.TrimSpace(f), "=")
		if name != "w" {
			continue
		}
		s, err := strconv.ParseUint(value, 10, 31)
		if err != nil {
			return 0, 0, false
		}
		window = min(time.Duration(s)*time.Second, maxWindow)
	}
	return int(count), window, true
}

// Limit asks a registry how much it still lets this client pull, by a HEAD of a
// manifest, which Docker Hub does not count. It is false if the registry does not
// say; the error says that it refuses, or does not answer.
func (c *Client) Limit(ctx context.Context, repo Repository, ref string) (Limit, bool, error) {
	k, _, err := manifestTask("ask", repo, ref)
	if err != nil {
		return Limit{}, false, err
	}
	resp, _, err := c.exchange(ctx, k, http.MethodHead, k.manifestURL(c), manifestHeader())
	if err != nil {
		return Limit{}, false, err
	}
	defer drop(resp)
	l, ok := parseLimit(resp.Header)
	return l, ok, nil
}
