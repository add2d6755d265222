package mirror

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/mux"
	"github.com/opencontainers/go-digest"
	"go.opentelemetry.io/otel/trace"

	"github.com/shoal-dev/shoal/swarm"
)

// kind of a pull request.
type kind string

const (
	kindManifest kind = "manifest"
	kindBlob     kind = "blob"
)

// canaryPrefix begins the names of repositories that only `shoal doctor` asks for.
// No registry is asked for them.
const canaryPrefix = "shoal-doctor/"

// unknownCode is the specification's code for a thing of this kind that is not
// there.
func (k kind) unknownCode() string {
	if k == kindBlob {
		return codeBlobUnknown
	}
	return codeManifestUnknown
}

// routes is the pull API, bare and under /registry/<host> for clients that
// send no ns. Names contain slashes, so the last keyword in the path counts.
func (m *Mirror) routes() http.Handler {
	r := mux.NewRouter()
	// Cleaning would answer a strange path with a redirect; ours is a miss.
	r.SkipClean(true)
	r.MethodNotAllowedHandler = http.HandlerFunc(m.noMethod)
	r.NotFoundHandler = http.HandlerFunc(m.noRoute)
	for _, prefix := range []string{"", "/registry/{host:[^/]+}"} {
		get := func(path string, h http.HandlerFunc) {
			r.Handle(prefix+path, h).Methods(http.MethodGet, http.MethodHead)
		}
		get("/v2/{name:.+}/manifests/{ref:[^/]+}", m.pulls(kindManifest, m.manifest))
		get("/v2/{name:.+}/blobs/{ref:[^/]+}", m.pulls(kindBlob, m.blob))
		get("/v2/", m.version)
		get("/v2", m.version)
	}
	return r
}

// version answers the API probe.
func (m *Mirror) version(w http.ResponseWriter, _ *http.Request) {
	h := w.Header()
	h.Set("Docker-Distribution-Api-Version", "registry/2.0")
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", "2")
	_, _ = w.Write([]byte("{}")) // the client's loss
}

func (m *Mirror) noRoute(w http.ResponseWriter, _ *http.Request) {
	m.met.fallbacks.WithLabelValues(reasonRoute).Inc()
	(&miss{code: codeUnsupported, reason: reasonRoute, message: "this mirror serves manifests and blobs only"}).write(w)
}

func (m *Mirror) noMethod(w http.ResponseWriter, _ *http.Request) {
	m.met.fallbacks.WithLabelValues(reasonMethod).Inc()
	w.Header().Set("Allow", "GET, HEAD")
	(&miss{status: http.StatusMethodNotAllowed, code: codeUnsupported, reason: reasonMethod, message: "this mirror is read-only"}).write(w)
}

// pull is one request and what becomes of it. A handler fills it in, and
// record reports it.
type pull struct {
	began  time.Time
	method string
	kind   kind
	repo   Repository
	ref    reference
	who    caller
	// digest of what is served.
	digest digest.Digest
	// lazy: a part of the blob is read for its own sake.
	lazy bool

	// ended tells that upstream refuses the caller's credential by now; nil if
	// it has none.
	ended chan error

	status  int
	sent    int64 // bytes of the body
	size    int64 // bytes of the whole content
	source  swarm.Source
	stats   swarm.Stats
	offline bool // permission was not confirmed by upstream
	// last is of when upstream's answer about the tag is, if it gives none now.
	last time.Time
	span trace.Span // nil without traces; record ends it
	// reason is empty when the request was answered in full.
	reason string
	err    error
}

// pulls turns a handler of pulls into one of HTTP. The handler returns an
// error only if it has written nothing.
func (m *Mirror) pulls(k kind, handle func(http.ResponseWriter, *http.Request, *pull) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		m.met.inFlight.Inc()
		defer m.met.inFlight.Dec()
		p := &pull{began: time.Now(), method: r.Method, kind: k, status: http.StatusOK}
		defer m.record(p)
		if m.cfg.Tracer != nil {
			r = m.trace(r, p)
		}
		err := m.admit(r, p)
		if err == nil {
			if partOfBurst(r) {
				m.met.burst.start(p.began)
				defer func() { m.met.burst.stop(time.Now()) }()
			}
			err = handle(w, r, p)
		}
		if err != nil {
			miss := asMiss(err, k.unknownCode())
			if p.who.auth == AuthorizeUpstream {
				miss.relay(p.who.id == "")
			}
			if p.lazy {
				miss.again()
			}
			p.status, p.reason, p.err = miss.httpStatus(), miss.reason, err
			m.patient(w)
			miss.write(w)
		}
	}
}

// admit reads what the request names, and refuses what is not for us.
func (m *Mirror) admit(r *http.Request, p *pull) error {
	vars := mux.Vars(r)
	var err error
	if host := vars["host"]; host != "" {
		// The path is the operator's own word, so it goes before ns.
		p.repo.Registry, err = parseRegistry(host)
	} else {
		p.repo.Registry, err = parseNamespace(r.URL.RawQuery)
	}
	if err != nil {
		return &miss{code: codeNameUnknown, reason: reasonNamespace, message: "malformed registry", cause: err}
	}
	if p.repo.Registry == "" {
		if m.fallback == "" {
			return &miss{code: codeNameUnknown, reason: reasonNoNamespace, message: "the request names no registry (ns)"}
		}
		p.repo.Registry = m.fallback
	}
	if !m.registries.Allowed(p.repo.Registry) {
		return &miss{code: codeNameUnknown, reason: reasonRegistry, message: "this registry is not mirrored"}
	}
	if p.repo.Name, err = parseName(vars["name"]); err != nil {
		return &miss{code: codeNameInvalid, reason: reasonName, message: "invalid repository name", cause: err}
	}
	if strings.HasPrefix(p.repo.Name, canaryPrefix) {
		return &miss{code: codeNameUnknown, reason: reasonCanary, message: "a canary of 'shoal doctor', which has arrived"}
	}
	if err := p.identify(vars["ref"]); err != nil {
		return err
	}
	p.who, err = m.callers.identify(p.repo, r.Header.Values("Authorization"))
	return err
}

// stale tells whether the tag was not confirmed by upstream.
func (p *pull) stale() bool { return !p.last.IsZero() }

// question is one to upstream, about something in the request's repository, in
// the caller's name.
func (p *pull) question(ref reference) question {
	return question{repo: p.repo, kind: p.kind, ref: ref, who: p.who}
}

// identify reads the reference; a blob has no tags.
func (p *pull) identify(ref string) (err error) {
	if p.kind == kindBlob {
		p.ref.digest, err = parseDigest(ref)
	} else {
		p.ref, err = parseReference(ref)
	}
	p.digest = p.ref.digest
	return referenceMiss(p.kind, err)
}

func referenceMiss(k kind, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errUnsupportedDigest):
		return &miss{code: codeUnsupported, reason: reasonAlgorithm, message: "only sha256 digests are served", cause: err}
	case k == kindBlob:
		return &miss{code: codeDigestInvalid, reason: reasonDigest, message: "invalid digest", cause: err}
	default:
		return &miss{code: codeManifestInvalid, reason: reasonReference, message: "invalid tag or digest", cause: err}
	}
}

// describe sets the headers that every answer with content has.
func describe(h http.Header, d digest.Digest, mediaType string, length int64) {
	h.Set("Docker-Content-Digest", d.String())
	h.Set("Docker-Distribution-Api-Version", "registry/2.0")
	h.Set("Content-Type", mediaType)
	h.Set("Content-Length", strconv.FormatInt(length, 10))
	h.Set("X-Content-Type-Options", "nosniff")
}
