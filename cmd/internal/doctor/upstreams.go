package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"sync"
)

// checkUpstreams looks whether Shoal reaches the registries, so that it is not
// blamed for them.
func checkUpstreams(ctx context.Context, e *Env) []Finding {
	registries := e.named()
	failures := make([]string, len(registries))
	var limited []string
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i, r := range registries {
		wg.Go(func() {
			status, err := ping(ctx, e, r)
			switch {
			case err != nil:
				failures[i] = fmt.Sprintf("%s: %v", r, err)
			case status == http.StatusTooManyRequests:
				mu.Lock()
				defer mu.Unlock()
				limited = append(limited, r)
			}
		})
	}
	wg.Wait()
	var all []Finding
	if failures = slices.DeleteFunc(failures, func(s string) bool { return s == "" }); len(failures) > 0 {
		all = append(all, Finding{
			ID: "upstream-unreachable", Severity: Warning, Title: fmt.Sprintf("%d of %d registries do not answer from here", len(failures), len(registries)),
			Evidence:    failures,
			Consequence: "Shoal serves of them what some node holds, and leaves the rest to containerd",
			Fix:         "if the cluster uses them: is there a proxy (HTTPS_PROXY, extraEnv), an egress policy, an authority of your own (--registry-ca)? If not, mirror only those that it uses (--registry)",
		})
	}
	if len(limited) > 0 {
		slices.Sort(limited)
		all = append(all, Finding{
			ID: "upstream-limited", Severity: Warning, Title: "a registry throttles this address",
			Evidence:    []string{fmt.Sprintf("429 from %q", limited)},
			Consequence: "new images wait or fail; what some node holds is served",
			Fix:         "wait, or pull with credentials, which usually have a higher limit",
		})
	}
	return all
}

// ping asks a registry for its version, the way Shoal goes.
func ping(ctx context.Context, e *Env, registry string) (status int, err error) {
	scheme := "https"
	if slices.Contains(e.Insecure, registry) {
		scheme = "http"
	}
	c := client(farTimeout)
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if file := e.CAs[registry]; file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return 0, err
		}
		if conf.RootCAs, err = x509.SystemCertPool(); err != nil {
			return 0, err
		}
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return 0, fmt.Errorf("%s: no certificate in it", file)
		}
	}
	c.Transport = &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: conf,
		Proxy: func(r *http.Request) (*url.URL, error) { return e.Proxy(r.URL) },
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+address(registry)+"/v2/", nil)
	if err != nil {
		return 0, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16))
	return resp.StatusCode, err
}
