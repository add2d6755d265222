package mirror

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/shoal-dev/shoal/chunker"
	"github.com/shoal-dev/shoal/mirror/upstream"
	"github.com/shoal-dev/shoal/swarm"
)

// Reasons for which a request is not, or not completely, answered. They are
// the values of the reason label of shoal_mirror_fallbacks_total.
const (
	reasonName        = "bad_name"           // malformed repository name
	reasonReference   = "bad_reference"      // malformed tag
	reasonDigest      = "bad_digest"         // malformed digest
	reasonAlgorithm   = "unsupported_digest" // a digest other than sha256
	reasonNamespace   = "bad_namespace"      // malformed or repeated ns
	reasonNoNamespace = "no_namespace"       // no ns, and no default registry
	reasonRegistry    = "registry"           // a registry that is not mirrored
	reasonCanary      = "canary"             // shoal doctor tries whether containerd asks here
	reasonRoute       = "route"              // a path that is not of the pull API
	reasonMethod      = "method"             // a method that does not read
	reasonRange       = "range"              // unsatisfiable, or several ranges
	reasonCredentials = "credentials"        // the caller's own are unusable, or do not count
	reasonChallenge   = "challenge"          // upstream wants credentials, and the caller was told
	reasonDenied      = "denied"             // upstream refuses the caller
	reasonNotFound    = "not_found"          // upstream has no such thing
	reasonUpstream    = "upstream"           // upstream does not answer, and no node has it
	reasonNotManifest = "not_manifest"       // the content is not a manifest
	reasonSlow        = "slow"               // a bounded wait ran out
	reasonDisk        = "disk_full"          // no room in the piece store
	reasonCooldown    = "cooldown"           // this blob failed here a moment ago
	reasonFailed      = "failed"             // the download failed before the first byte
	reasonCutStalled  = "cut_stalled"        // nothing came for StallTimeout: body cut
	reasonCutFailed   = "cut_failed"         // the download failed in mid-body: body cut
	reasonCutDenied   = "cut_denied"         // the caller's credential ended in mid-body: body cut
	reasonClient      = "client"             // the client went away, or stopped reading
)

// Error codes of the OCI distribution specification 1.1, "Error Codes".
const (
	codeNameInvalid     = "NAME_INVALID"
	codeNameUnknown     = "NAME_UNKNOWN"
	codeDigestInvalid   = "DIGEST_INVALID"
	codeManifestInvalid = "MANIFEST_INVALID"
	codeManifestUnknown = "MANIFEST_UNKNOWN"
	codeBlobUnknown     = "BLOB_UNKNOWN"
	codeUnsupported     = "UNSUPPORTED"
	codeUnauthorized    = "UNAUTHORIZED"
	codeDenied          = "DENIED"
)

// miss is why a request is not served. The zero status is 404: containerd
// turns to its next host at once for that, and shows the upstream's own error
// to the user rather than ours. A malformed request gets it too, since what
// this mirror finds malformed an upstream may not.
type miss struct {
	status  int
	code    string
	reason  string
	message string
	cause   error // logged, never sent
	// challenges to answer, with a 401.
	challenges []string
}

func (m *miss) Error() string {
	if m.cause != nil {
		return fmt.Sprintf("%s: %v", m.message, m.cause)
	}
	return m.message
}

func (m *miss) Unwrap() error { return m.cause }

// relay makes the answer to a caller who was refused in its own name that of
// upstream, so that it can come back with credentials. without says that it
// had none. Upstream's answer is a miss here if there is nothing in it that a
// client could use.
func (m *miss) relay(without bool) {
	var e *upstream.Error
	if m.reason != reasonDenied || !errors.As(m.cause, &e) {
		return
	}
	switch {
	case len(e.Challenges) > 0:
		m.status, m.code, m.challenges = http.StatusUnauthorized, codeUnauthorized, e.Challenges
		if without {
			m.reason, m.message = reasonChallenge, "the registry wants credentials"
		}
	case e.Status == http.StatusForbidden:
		m.status, m.code = http.StatusForbidden, codeDenied
	}
}

// again tells a lazy snapshotter to come back: it has no next host for a layer that it
// has mounted, and tries again upon 503, but not upon 404.
func (m *miss) again() {
	switch m.reason {
	case reasonUpstream, reasonSlow, reasonDisk, reasonFailed:
		m.status = http.StatusServiceUnavailable
	}
}

// asMiss is the one place where errors become answers. code is what the
// request was after, in the specification's words.
func asMiss(err error, code string) *miss {
	var known *miss
	var space *chunker.NoSpaceError
	m := &miss{code: code, cause: err}
	switch {
	case errors.As(err, &known):
		if known.code == "" {
			known.code = code
		}
		return known
	case errors.Is(err, upstream.ErrDenied):
		m.reason, m.message = reasonDenied, "the registry does not let the caller pull"
	case errors.Is(err, swarm.ErrNotFound):
		m.reason, m.message = reasonNotFound, "not found"
	case errors.As(err, &space):
		m.reason, m.message = reasonDisk, "no room on this node"
	case errors.Is(err, errSlow), errors.Is(err, errStalled), errors.Is(err, context.DeadlineExceeded):
		m.reason, m.message = reasonSlow, "gave up waiting"
	case errors.Is(err, context.Canceled):
		m.reason, m.message = reasonClient, "request cancelled"
	case errors.Is(err, swarm.ErrUnavailable):
		m.reason, m.message = reasonUpstream, "the registry does not answer, and no node has this"
	default:
		m.reason, m.message = reasonFailed, "cannot be served by this node"
	}
	return m
}

type specErrors struct {
	Errors []specError `json:"errors"`
}

type specError struct {
	Code    string            `json:"code"`
	Message string            `json:"message"`
	Detail  map[string]string `json:"detail,omitempty"`
}

// httpStatus is the answer's.
func (m *miss) httpStatus() int {
	if m.status == 0 {
		return http.StatusNotFound
	}
	return m.status
}

// write answers with the error body of the specification.
func (m *miss) write(w http.ResponseWriter) {
	body := bytes.NewBuffer(make([]byte, 0, 256))
	// Strings and maps of strings always encode.
	_ = json.NewEncoder(body).Encode(specErrors{[]specError{{
		Code: m.code, Message: m.message, Detail: map[string]string{"reason": m.reason},
	}}})
	h := w.Header()
	for _, c := range m.challenges {
		h.Add("WWW-Authenticate", c)
	}
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(body.Len()))
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(m.httpStatus())
	_, _ = w.Write(body.Bytes()) // the client's loss
}
