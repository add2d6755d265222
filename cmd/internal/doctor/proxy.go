package doctor

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/net/http/httpproxy"
)

// checkProxy compares containerd's way to the registries with Shoal's: a proxy
// that only containerd knows of leaves Shoal without them, and one that does not
// lead to a registry leaves containerd without what Shoal does not serve.
func checkProxy(ctx context.Context, e *Env, d daemon) []Finding {
	if d.err != nil {
		return []Finding{{
			ID: "not-examined", Severity: Note, Title: "containerd's proxy settings were not examined",
			Evidence:    []string{d.err.Error()},
			Consequence: "if containerd reaches the registries through a proxy, Shoal has to be told of it too",
			Fix:         "run 'shoal doctor' on the node itself; or look there at 'systemctl show containerd --property Environment'",
		}}
	}
	c := httpproxy.Config{
		HTTPProxy:  either(d.env, "HTTP_PROXY", "http_proxy"),
		HTTPSProxy: either(d.env, "HTTPS_PROXY", "https_proxy"),
		NoProxy:    either(d.env, "NO_PROXY", "no_proxy"),
	}
	its := c.ProxyFunc()
	var all []Finding
	if u, err := url.Parse(e.Mirror); err == nil && proxied(its, u) {
		all = append(all, Finding{
			ID: "proxy-mirror", Severity: Error, Title: "containerd asks the mirror through a proxy",
			Evidence:    []string{d.from + " has a proxy for " + e.Mirror},
			Consequence: "the proxy does not lead to this node's mirror: containerd asks the registries, or fails",
			Fix:         "have the mirror on a loopback address (--mirror-addr 127.0.0.1:6500), which is never asked through a proxy; or " + noProxy(c, u.Hostname()),
		})
	}
	var only, mine, there []string
	for _, r := range e.Registries.Named() {
		u := e.Upstream.Endpoint(r)
		its, own := proxied(its, u), proxied(e.Proxy, u)
		if its {
			there = append(there, r)
		}
		switch {
		case its && !own:
			only = append(only, r)
		case own && !its:
			mine = append(mine, r)
		}
	}
	if len(only) > 0 {
		all = append(all, Finding{
			ID: "proxy-unknown", Severity: Warning, Title: "containerd reaches registries through a proxy, Shoal does not",
			Evidence:    []string{d.from + " has a proxy for " + strings.Join(only, ", ")},
			Consequence: "where the proxy is the only way, Shoal gets nothing from these registries, and leaves every pull to containerd",
			Fix:         "give 'shoal serve' the same environment (extraEnv in the chart; it speaks to other nodes without a proxy in any case):\n" + environment(c),
		})
	}
	if len(mine) > 0 {
		all = append(all, Finding{
			ID: "proxy-own", Severity: Warning, Title: "Shoal reaches registries through a proxy, containerd does not",
			Evidence:    []string{"Shoal's environment has a proxy for " + strings.Join(mine, ", ")},
			Consequence: "what leaves the registry takes the way round, if there is one",
			Fix:         "add them to NO_PROXY of 'shoal serve': " + strings.Join(mine, ","),
		})
	}
	return append(all, checkThrough(ctx, e, d, c, there)...)
}

// checkThrough tries containerd's proxy.
func checkThrough(ctx context.Context, e *Env, d daemon, c httpproxy.Config, registries []string) []Finding {
	if len(registries) == 0 {
		return nil
	}
	its := c.ProxyFunc()
	up, err := e.Upstream.Through(func(r *http.Request) (*url.URL, error) { return its(r.URL) })
	if err != nil {
		return []Finding{{
			ID: "not-examined", Severity: Note, Title: "containerd's proxy was not tried", Evidence: []string{err.Error()},
			Consequence: "it may not lead to the registries",
			Fix:         "run the doctor with the settings of 'shoal serve'",
		}}
	}
	defer up.Close()
	var failed, evidence []string
	for i, err := range ping(ctx, up, registries) {
		if err != nil {
			failed = append(failed, registries[i])
			evidence = append(evidence, err.Error())
		}
	}
	if len(failed) == 0 {
		return nil
	}
	var hosts []string
	for _, r := range failed {
		hosts = append(hosts, e.Upstream.Endpoint(r).Hostname())
	}
	return []Finding{{
		ID: "proxy-fails", Severity: Warning, Title: fmt.Sprintf("containerd's proxy does not lead to %d of %d registries", len(failed), len(registries)),
		Evidence:    append([]string{d.from + " has " + strings.ReplaceAll(environment(c), "\n", " ")}, evidence...),
		Consequence: "what no node holds, and Shoal cannot fetch, containerd does not get either",
		Fix:         "mend the proxy; or, for registries that can be reached without it, " + noProxy(c, hosts...),
	}}
}

// environment are the variables of a proxy, without passwords.
func environment(c httpproxy.Config) string {
	var lines []string
	for _, v := range []struct{ name, value string }{{"HTTP_PROXY", c.HTTPProxy}, {"HTTPS_PROXY", c.HTTPSProxy}, {"NO_PROXY", c.NoProxy}} {
		if u, err := url.Parse(v.value); err == nil && u.User != nil {
			v.value = u.Redacted()
		}
		if v.value != "" {
			lines = append(lines, v.name+"="+v.value)
		}
	}
	return strings.Join(lines, "\n")
}

// noProxy says how to except hosts from containerd's proxy.
func noProxy(c httpproxy.Config, hosts ...string) string {
	if c.NoProxy != "" {
		hosts = append([]string{c.NoProxy}, hosts...)
	}
	return "write /etc/systemd/system/containerd.service.d/no-proxy.conf (or that of the service which runs containerd) with\n" +
		"[Service]\nEnvironment=\"NO_PROXY=" + strings.Join(hosts, ",") + "\"\n" +
		"and run 'systemctl daemon-reload' and 'systemctl restart containerd'; running containers go on"
}

// proxied tells whether a request goes through a proxy.
func proxied(proxy func(*url.URL) (*url.URL, error), to *url.URL) bool {
	u, err := proxy(to)
	return err == nil && u != nil
}

func either(env map[string]string, names ...string) string {
	for _, n := range names {
		if env[n] != "" {
			return env[n]
		}
	}
	return ""
}
