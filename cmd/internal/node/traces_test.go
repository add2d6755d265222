package node

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/rs/zerolog"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// spanCollector takes traces, as OTLP has them.
type spanCollector struct {
	*httptest.Server
	// answer, if set, answers instead.
	answer http.HandlerFunc

	mu    sync.Mutex
	raw   []byte // all that came
	spans []*otlp.Span
	about map[string]string // attributes of the resource
}

func newSpanCollector(t *testing.T) *spanCollector {
	t.Helper()
	c := &spanCollector{about: map[string]string{}}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c.answer != nil {
			c.answer(w, r)
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		var in collector.ExportTraceServiceRequest
		if err := proto.Unmarshal(body, &in); err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("%s: not spans: %v", r.URL, err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.raw = append(c.raw, body...)
		for _, rs := range in.GetResourceSpans() {
			for _, a := range rs.GetResource().GetAttributes() {
				c.about[a.GetKey()] = a.GetValue().GetStringValue()
			}
			for _, ss := range rs.GetScopeSpans() {
				c.spans = append(c.spans, ss.GetSpans()...)
			}
		}
	}))
	t.Cleanup(c.Close)
	return c
}

// attributes of a span, as text.
func attributes(s *otlp.Span) map[string]string {
	all := map[string]string{}
	for _, a := range s.GetAttributes() {
		v := a.GetValue()
		all[a.GetKey()] = v.GetStringValue()
		if v.GetStringValue() == "" {
			all[a.GetKey()] = fmt.Sprint(v.GetIntValue())
		}
	}
	return all
}

const (
	secret  = "s3cret"
	traceID = "0af7651916cd43dd8448eb211c80319c"
	spanID  = "b7ad6b7169203331"
)

// keepSecrets lets an origin serve by token only, and its blobs from another place,
// by a signature in the URL.
func keepSecrets(o *origin) {
	o.srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token":
			_, _ = io.WriteString(w, `{"token":"`+secret+`-token"}`)
		case strings.HasPrefix(r.URL.Path, "/"+secret+"-store"):
			if r.URL.Query().Get("X-Amz-Signature") == "" {
				http.Error(w, "unsigned", http.StatusForbidden)
				return
			}
			r.URL.Path = strings.TrimPrefix(r.URL.Path, "/"+secret+"-store")
			o.ServeHTTP(w, r)
		case r.Header.Get("Authorization") != "Bearer "+secret+"-token":
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+o.srv.URL+`/token?hint=`+secret+`",service="registry"`)
			w.WriteHeader(http.StatusUnauthorized)
		case strings.Contains(r.URL.Path, "/blobs/"):
			http.Redirect(w, r, "/"+secret+"-store"+r.URL.Path+"?X-Amz-Signature="+secret, http.StatusTemporaryRedirect)
		default:
			o.ServeHTTP(w, r)
		}
	})
}

// fetch asks the mirror as a traced containerd does.
func (r *running) fetch(t *testing.T, path, authorization string) (int, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.Addresses().Mirror+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Traceparent", "00-"+traceID+"-"+spanID+"-01")
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	p, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, p
}

// TestTraces pulls an image that needs a token and comes from a signed URL, with the
// node's credentials and with the caller's: the spans say where time went, belong to
// the caller's trace, and hold no secret.
func TestTraces(t *testing.T) {
	for whose, authorization := range map[string]string{"node": "", "upstream": "Bearer " + secret + "-token"} {
		t.Run(whose, func(t *testing.T) {
			o := newOrigin(t, 3<<20)
			keepSecrets(o)
			spans := newSpanCollector(t)
			c := config(t, "traced", o)
			c.OTLPEndpoint, c.Version = spans.URL, "1.2.3"
			c.Authorization = map[string]string{o.host: whose}
			if whose == "node" {
				c.DockerConfig = filepath.Join(t.TempDir(), "config.json")
				text := fmt.Sprintf(`{"auths":{%q:{"username":"%s-user","password":"%s-password"}}}`, o.host, secret, secret)
				if err := os.WriteFile(c.DockerConfig, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			n := start(t, c)
			ns := "?ns=" + o.host
			for _, path := range []string{"/v2/app/manifests/latest", "/v2/app/blobs/" + o.layer.String()} {
				status, body := n.fetch(t, path+ns, authorization)
				if status != http.StatusOK || !bytes.Equal(body, o.content[path]) {
					t.Fatalf("%s: %d, %d bytes", path, status, len(body))
				}
			}
			absent := "/v2/app/blobs/" + digest.FromString("absent").String()
			for path, want := range map[string]int{absent + ns: http.StatusNotFound, absent + "?ns=elsewhere.example": http.StatusNotFound} {
				if status, _ := n.fetch(t, path, authorization); status != want {
					t.Fatalf("%s: %d", path, status)
				}
			}
			n.end(t)() // the last spans go out
			spans.check(t, o, whose)
		})
	}
}

func (c *spanCollector) check(t *testing.T, o *origin, whose string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, no := range []string{secret, "X-Amz", "/token", "://", "Bearer"} {
		if at := bytes.Index(c.raw, []byte(no)); at >= 0 {
			t.Errorf("spans contain %q: %q", no, c.raw[max(at-80, 0):min(at+80, len(c.raw))])
		}
	}
	if c.about["service.name"] != "shoal" || c.about["service.namespace"] != "test" || c.about["service.instance.id"] != "traced" || c.about["service.version"] != "1.2.3" {
		t.Errorf("the spans are of %v", c.about)
	}
	byID, names := map[string]*otlp.Span{}, map[string]int{}
	for _, s := range c.spans {
		byID[string(s.GetSpanId())] = s
		names[s.GetName()]++
	}
	for _, want := range []string{"resolve tag", "ask registry", "head manifest", "get content", "get manifest", "head blob", "fetch blob", "lease", "get blob", "verify blob"} {
		if names[want] == 0 {
			t.Errorf("no span %q among %v", want, slices.Sorted(maps.Keys(names)))
		}
	}
	if whose == "node" && names["authorize pull of"] == 0 {
		t.Error("no span of the request for a token")
	}
	var requests []map[string]string
	for _, s := range c.spans {
		parent := byID[string(s.GetParentSpanId())]
		if hex.EncodeToString(s.GetTraceId()) != traceID {
			t.Errorf("%s is not of the caller's trace", s.GetName())
		}
		if s.GetKind() == otlp.Span_SPAN_KIND_SERVER {
			requests = append(requests, attributes(s))
			if hex.EncodeToString(s.GetParentSpanId()) != spanID {
				t.Errorf("%s is not a part of the caller's span", s.GetName())
			}
		} else if parent == nil {
			t.Errorf("%s is a part of nothing", s.GetName())
		}
		if want := map[string]string{"lease": "fetch blob", "verify blob": "fetch blob", "fetch blob": "GET blob", "get manifest": "get content"}[s.GetName()]; want != "" && parent.GetName() != want {
			t.Errorf("%s is a part of %q, want %q", s.GetName(), parent.GetName(), want)
		}
		if s.GetName() == "verify blob" && (s.GetStartTimeUnixNano() < parent.GetStartTimeUnixNano() || s.GetEndTimeUnixNano() < s.GetStartTimeUnixNano()) {
			t.Error("the blob was verified before it came, or after its end")
		}
	}
	for _, want := range []map[string]string{
		{"shoal.kind": "manifest", "shoal.reference": "latest", "shoal.source": "origin", "http.response.status_code": "200"},
		{"shoal.kind": "blob", "shoal.digest": o.layer.String(), "shoal.source": "origin", "shoal.bytes.sent": "3145728", "shoal.bytes.origin": "3145728", "shoal.repository": "app", "shoal.registry": o.host},
		{"shoal.kind": "blob", "shoal.source": "refused", "shoal.reason": "not_found", "http.response.status_code": "404"},
		{"shoal.kind": "blob", "shoal.source": "refused", "shoal.reason": "registry", "shoal.registry": "elsewhere.example"},
	} {
		if !slices.ContainsFunc(requests, func(got map[string]string) bool {
			for k, v := range want {
				if got[k] != v {
					return false
				}
			}
			return true
		}) {
			t.Errorf("no request %v among %v", want, requests)
		}
	}
}

// TestTracesInTrouble: a collector that says nothing, refuses or is not there slows
// no pull down, and does not keep the node from stopping.
func TestTracesInTrouble(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"silent": func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		},
		"refuses": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) },
		"busy":    func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
		"away":    nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "10") // ms: it is busy exporting in the pull
			t.Setenv("OTEL_BSP_MAX_QUEUE_SIZE", "2")
			t.Setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
			o := newOrigin(t, 3<<20)
			spans := newSpanCollector(t)
			spans.answer = answer
			c := config(t, "traced", o)
			var log bytes.Buffer
			c.Log = zerolog.New(zerolog.SyncWriter(&log))
			c.OTLPEndpoint = spans.URL + "/"
			if answer == nil {
				spans.Close()
			}
			n := start(t, c)
			for range 3 {
				began := time.Now()
				if status, _ := n.fetch(t, "/v2/app/blobs/"+o.layer.String()+"?ns="+o.host, ""); status != http.StatusOK {
					t.Fatalf("status %d", status)
				}
				if took := time.Since(began); took > 2*time.Second {
					t.Errorf("a pull took %v", took)
				}
			}
			began := time.Now()
			n.end(t)()
			// A second without responses, and the last spans' chance.
			if took := time.Since(began); took > flushTimeout+3*time.Second {
				t.Errorf("stopping took %v", took)
			}
			if n := strings.Count(log.String(), "spans are lost"); n != 1 {
				t.Errorf("%d lines of log about it, want 1:\n%s", n, &log)
			}
		})
	}
}

// refusing is an exporter that fails.
type refusing struct{}

func (refusing) ExportSpans(context.Context, []sdktrace.ReadOnlySpan) error { return errors.New("no") }
func (refusing) Shutdown(context.Context) error                             { return nil }

// TestComplaints: once in a while, with all that was lost since.
func TestComplaints(t *testing.T) {
	var log bytes.Buffer
	e := &exporter{SpanExporter: refusing{}, log: zerolog.New(&log), life: t.Context()}
	for range 3 {
		if err := e.ExportSpans(t.Context(), make([]sdktrace.ReadOnlySpan, 5)); err != nil {
			t.Error("a failure got out:", err)
		}
	}
	if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), `"lost":5`) {
		t.Errorf("logged %d lines: %s", n, &log)
	}
	log.Reset()
	e.complain(5, errors.New("no"), time.Now().Add(complainEvery+time.Second))
	if !strings.Contains(log.String(), `"lost":15`) {
		t.Errorf("logged later: %s", &log)
	}
}

func TestOTLPEndpoint(t *testing.T) {
	for s, want := range map[string]string{
		"http://collector:4318":            "http://collector:4318/v1/traces",
		"https://collector/":               "https://collector/v1/traces",
		"https://collector/tenant/traces":  "https://collector/tenant/traces",
		"collector:4318":                   "",
		"grpc://collector:4317":            "",
		"http://":                          "",
		"http://user:pw@collector:4318":    "",
		"http://collector:4318/?token=abc": "",
	} {
		u, err := parseOTLPEndpoint(s)
		switch {
		case want == "" && (err == nil || strings.Contains(err.Error(), "pw") || strings.Contains(err.Error(), "abc")):
			t.Errorf("%s: %v, error %v", s, u, err)
		case want != "" && (err != nil || u.String() != want):
			t.Errorf("%s: %v, error %v, want %s", s, u, err, want)
		}
	}
}
