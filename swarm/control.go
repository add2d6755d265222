package swarm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/gorilla/mux"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-dev/shoal/swarm/peertls"
	"github.com/shoal-dev/shoal/swarm/tracker"
)

// The control plane's paths, besides PathProbe. Bodies are JSON, at most maxBody bytes,
// except for the tracker stream (see package tracker), blobs and probes (raw bytes,
// Range).
const (
	pathTrack    = "/v1/track"
	pathHolders  = "/v1/holders/"
	pathAnnounce = "/v1/announce"
	pathBlobs    = "/v1/blobs/"
	pathLookup   = "/v1/tags/lookup"
	pathPublish  = "/v1/tags/publish"
	// pathReferences is for what one tracker tells another; see handover.
	pathReferences = "/v1/tags/references"

	// nodeHeader names the caller; its certificate must agree.
	nodeHeader = "Shoal-Node"
	// maxBody bounds a request body: a full announcement batch takes 60 KiB.
	maxBody = 1 << 20
	// maxBatch is how many digests one announcement carries.
	maxBatch = 500
	// maxName bounds the name that a caller gives.
	maxName = 1024
)

type holdersAnswer struct {
	Size  int64    `json:"size"`
	Nodes []string `json:"nodes"`
	// Pullers is how many pull it now.
	Pullers int `json:"pullers,omitempty"`
	// Havers pull it and have the range that was asked about.
	Havers []string `json:"havers,omitempty"`
}

type announcement struct {
	Added   []tracker.Item  `json:"added,omitempty"`
	Removed []digest.Digest `json:"removed,omitempty"`
}

type tagLookup struct {
	Ref string        `json:"ref"`
	TTL time.Duration `json:"ttl"`
	// Last asks for what is known, however old: the caller will not ask upstream.
	Last bool `json:"last,omitempty"`
}

type tagPublish struct {
	Ref string              `json:"ref"`
	Res *tracker.Resolution `json:"res,omitempty"`
}

type callerKey struct{}

func (n *Node) handler() http.Handler {
	r := mux.NewRouter()
	r.Use(n.identify)
	r.HandleFunc(pathTrack, n.serveTrack).Methods(http.MethodPost)
	r.HandleFunc(pathHolders+"{digest}", n.serveHolders).Methods(http.MethodGet)
	r.HandleFunc(pathAnnounce, n.serveAnnounce).Methods(http.MethodPost)
	r.HandleFunc(pathBlobs+"{digest}", n.serveBlob).Methods(http.MethodGet, http.MethodHead)
	r.HandleFunc(PathProbe, ServeProbe).Methods(http.MethodGet, http.MethodPost)
	r.HandleFunc(pathLookup, n.serveLookup).Methods(http.MethodPost)
	r.HandleFunc(pathPublish, n.servePublish).Methods(http.MethodPost)
	r.HandleFunc(pathReferences, n.serveReferences).Methods(http.MethodPost)
	return r
}

// identify binds a request to the node that it names in its header, if its
// certificate may speak for it.
func (n *Node) identify(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get(nodeHeader)
		if n.cfg.TLS != nil {
			if r.TLS == nil {
				http.Error(w, "client certificate required", http.StatusForbidden)
				return
			}
			if cert, err := peertls.PeerID(*r.TLS); err != nil || !peertls.Speaks(cert, id) {
				http.Error(w, "client certificate does not name the calling node", http.StatusForbidden)
				return
			}
		}
		if id == "" || len(id) > maxName {
			http.Error(w, "unnamed node", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, id)))
	})
}

func caller(r *http.Request) string { id, _ := r.Context().Value(callerKey{}).(string); return id }

func (n *Node) serveTrack(w http.ResponseWriter, r *http.Request) {
	dec := tracker.NewDecoder[tracker.Up](r.Body)
	hi, err := dec.Next()
	if err == nil && hi.Hello == nil {
		err = fmt.Errorf("%w: first message is no hello", tracker.ErrMessage)
	}
	if err == nil {
		err = hi.Hello.Check(caller(r))
	}
	if err != nil {
		n.dropPeer(w, r, err)
		return
	}
	s, err := n.tracker.Join(hi.Hello)
	if err != nil {
		n.dropPeer(w, r, err)
		return
	}
	defer s.Close()
	ctx, cancel := context.WithCancel(r.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer cancel()
		rc := http.NewResponseController(w)
		w.WriteHeader(http.StatusOK)
		if rc.Flush() != nil {
			return
		}
		enc := json.NewEncoder(w)
		for {
			d, ok := s.Next(ctx)
			if !ok {
				return
			}
			for _, part := range d.Split() {
				if enc.Encode(part) != nil {
					return
				}
			}
			if rc.Flush() != nil {
				return
			}
		}
	}()
	// The body's Read is not bound to ctx; closing it is what ends the loop
	// when the writer has given up.
	stop := context.AfterFunc(ctx, func() { _ = r.Body.Close() })
	defer stop()
	hi.Hello = nil
	for err = s.Handle(hi); err == nil; {
		var u tracker.Up
		if u, err = dec.Next(); err == nil {
			err = s.Handle(u)
		}
	}
	if errors.Is(err, tracker.ErrMessage) {
		n.met.badMessages.Inc()
		n.cfg.Log.Warn().Str("node", caller(r)).Err(err).Msg("dropped a peer that sent an invalid tracker message")
	}
	cancel()
	s.Close()
	<-done
}

// dropPeer answers a stream that never got going.
func (n *Node) dropPeer(w http.ResponseWriter, r *http.Request, err error) {
	n.met.badMessages.Inc()
	n.cfg.Log.Warn().Str("node", caller(r)).Err(err).Msg("refused a tracker session")
	http.Error(w, err.Error(), http.StatusBadRequest)
}

func (n *Node) serveHolders(w http.ResponseWriter, r *http.Request) {
	d, ok := pathDigest(w, r)
	if !ok {
		return
	}
	var a holdersAnswer
	a.Size, a.Nodes = n.tracker.Holders(d)
	a.Pullers = n.tracker.Pullers(d)
	if q := r.URL.Query(); q.Has("off") {
		off, oerr := strconv.ParseInt(q.Get("off"), 10, 64)
		length, lerr := strconv.ParseInt(q.Get("n"), 10, 64)
		if err := errors.Join(oerr, lerr); err != nil {
			n.badBody(w, r, err)
			return
		}
		a.Havers = n.tracker.Havers(d, off, length)
	}
	writeJSON(w, a)
}

func (n *Node) serveAnnounce(w http.ResponseWriter, r *http.Request) {
	var a announcement
	if !n.readJSON(w, r, &a) {
		return
	}
	for _, i := range a.Added {
		if !validDigest(i.Digest) || i.Size < 0 {
			n.badBody(w, r, fmt.Errorf("announced digest %.80q of %d bytes", i.Digest, i.Size))
			return
		}
	}
	n.tracker.Announce(caller(r), a.Added, a.Removed)
	w.WriteHeader(http.StatusNoContent)
}

// serveBlob sends a whole blob, or a range of it, to a peer that has a lease
// on it, or reads a part of it. Of a blob that is on its way, that part may be here.
func (n *Node) serveBlob(w http.ResponseWriter, r *http.Request) {
	d, ok := pathDigest(w, r)
	if !ok {
		return
	}
	blob, err := n.Open(r.Context(), d)
	if err != nil && r.Header.Get("Range") != "" {
		blob, err = n.openArrived(d)
	}
	if err != nil {
		http.Error(w, "blob not here", http.StatusNotFound)
		return
	}
	defer blob.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	cw := &countingWriter{ResponseWriter: w, n: n.met.sent}
	http.ServeContent(cw, r, "", time.Time{}, io.NewSectionReader(blob, 0, blob.Size()))
}

func (n *Node) serveLookup(w http.ResponseWriter, r *http.Request) {
	var q tagLookup
	if !n.readJSON(w, r, &q) {
		return
	}
	err := tracker.CheckRef(q.Ref)
	if q.TTL < 0 {
		err = errors.Join(err, fmt.Errorf("tag lookup with a ttl of %v", q.TTL))
	}
	if err != nil {
		n.badBody(w, r, err)
		return
	}
	if q.Last {
		writeJSON(w, tracker.TagAnswer{Known: n.tracker.Last(q.Ref)})
		return
	}
	writeJSON(w, n.tracker.Lookup(q.Ref, caller(r), q.TTL))
}

func (n *Node) servePublish(w http.ResponseWriter, r *http.Request) {
	var p tagPublish
	if !n.readJSON(w, r, &p) {
		return
	}
	err := tracker.CheckRef(p.Ref)
	if err == nil && p.Res != nil {
		err = p.Res.Check()
	}
	if err != nil {
		n.badBody(w, r, err)
		return
	}
	n.tracker.Publish(p.Ref, caller(r), p.Res)
	w.WriteHeader(http.StatusNoContent)
}

func (n *Node) readJSON(w http.ResponseWriter, r *http.Request, v any) bool {
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(v); err != nil {
		n.badBody(w, r, err)
		return false
	}
	return true
}

func (n *Node) badBody(w http.ResponseWriter, r *http.Request, err error) {
	n.met.badMessages.Inc()
	n.cfg.Log.Warn().Str("node", caller(r)).Str("path", r.URL.Path).Err(err).Msg("refused an invalid peer message")
	http.Error(w, "invalid message", http.StatusBadRequest)
}

func pathDigest(w http.ResponseWriter, r *http.Request) (digest.Digest, bool) {
	d := digest.Digest(mux.Vars(r)["digest"])
	if !validDigest(d) {
		http.Error(w, "invalid digest", http.StatusBadRequest)
		return "", false
	}
	return d, true
}

func validDigest(d digest.Digest) bool {
	return d.Validate() == nil && d.Algorithm() == digest.SHA256
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	// The status is out; a peer that hung up is no error of ours.
	_ = json.NewEncoder(w).Encode(v)
}

// countingWriter adds what is sent to a counter as it is sent.
type countingWriter struct {
	http.ResponseWriter
	n interface{ Add(float64) }
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n.Add(float64(n))
	return n, err
}
