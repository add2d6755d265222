package doctor

import (
	"bytes"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/net/http/httpproxy"
)

// daemons are the programs that containerd is part of, and their services.
var daemons = []string{"containerd", "k3s", "k3s-server", "k3s-agent", "rke2", "k0s"}

// checkProxy compares containerd's way to the registries with Shoal's: a proxy
// that only containerd knows of leaves Shoal without them. The mirror itself is on
// a loopback address, which Go programs never reach through a proxy. proc is where
// processes are seen.
func checkProxy(e *Env, proc string) []Finding {
	env, from, err := daemonEnv(e, proc)
	if err != nil {
		return []Finding{{
			ID: "not-examined", Severity: Note, Title: "containerd's proxy settings were not examined",
			Evidence:    []string{err.Error()},
			Consequence: "if containerd reaches the registries through a proxy, Shoal has to be told of it too",
			Fix:         "run 'shoal doctor' on the node itself; or look there at 'systemctl show containerd --property Environment'",
		}}
	}
	its := (&httpproxy.Config{
		HTTPProxy:  either(env, "HTTP_PROXY", "http_proxy"),
		HTTPSProxy: either(env, "HTTPS_PROXY", "https_proxy"),
		NoProxy:    either(env, "NO_PROXY", "no_proxy"),
	}).ProxyFunc()
	var all []Finding
	var only, mine []string
	for _, r := range e.Registries.Named() {
		u := e.Upstream.Endpoint(r)
		there, here := proxied(its, u), proxied(e.Proxy, u)
		switch {
		case there && !here:
			only = append(only, r)
		case here && !there:
			mine = append(mine, r)
		}
	}
	if len(only) > 0 {
		all = append(all, Finding{
			ID: "proxy-unknown", Severity: Warning, Title: "containerd reaches registries through a proxy, Shoal does not",
			Evidence:    []string{from + " has a proxy for " + strings.Join(only, ", ")},
			Consequence: "where the proxy is the only way, Shoal gets nothing from these registries, and leaves every pull to containerd",
			Fix:         "give 'shoal serve' the same HTTP_PROXY, HTTPS_PROXY and NO_PROXY (extraEnv in the chart), with the addresses of nodes and pods in NO_PROXY",
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
	return all
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

// daemonEnv is the environment of containerd's process, or what its service sets,
// and where that was found.
func daemonEnv(e *Env, proc string) (env map[string]string, from string, err error) {
	found, err := filepath.Glob(filepath.Join(proc, "[0-9]*", "comm"))
	if err != nil {
		return nil, "", err
	}
	for _, p := range found {
		name, err := os.ReadFile(p)
		if err != nil || !slices.Contains(daemons, strings.TrimSpace(string(name))) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(filepath.Dir(p), "environ"))
		if err != nil {
			return nil, "", err
		}
		env = map[string]string{}
		for v := range bytes.SplitSeq(text, []byte{0}) {
			if name, value, ok := strings.Cut(string(v), "="); ok {
				env[name] = value
			}
		}
		return env, "process " + filepath.Base(filepath.Dir(p)) + " (" + strings.TrimSpace(string(name)) + ")", nil
	}
	env, files := serviceEnv(e)
	if len(files) == 0 {
		return nil, "", fmt.Errorf("no process of containerd is seen from here, nor a service of it below %s", e.path("/etc/systemd/system"))
	}
	return env, strings.Join(files, ", "), nil
}

// serviceEnv reads Environment= of systemd's units and drop-ins.
func serviceEnv(e *Env) (env map[string]string, files []string) {
	env = map[string]string{}
	for _, dir := range []string{"/lib/systemd/system", "/etc/systemd/system"} {
		for _, d := range daemons {
			drop, _ := filepath.Glob(e.path(filepath.Join(dir, d+".service.d", "*.conf"))) // no pattern of ours is bad
			for _, file := range append([]string{e.path(filepath.Join(dir, d+".service"))}, drop...) {
				text, err := os.ReadFile(file)
				if err != nil {
					continue
				}
				files = append(files, file)
				for line := range strings.Lines(string(text)) {
					if v, ok := strings.CutPrefix(strings.TrimSpace(line), "Environment="); ok {
						maps.Copy(env, assignments(v))
					}
				}
			}
		}
	}
	return env, files
}

// assignments reads NAME=value pairs, which may be quoted, as systemd does.
func assignments(s string) map[string]string {
	env := map[string]string{}
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimSpace(s) {
		end := strings.IndexAny(s, " \t")
		if q := s[0]; q == '"' || q == '\'' {
			s = s[1:]
			end = strings.IndexByte(s, q)
		}
		word := s
		if end >= 0 {
			word, s = s[:end], s[end+1:]
		} else {
			s = ""
		}
		if name, value, ok := strings.Cut(word, "="); ok {
			env[name] = strings.Trim(value, `"'`)
		}
	}
	return env
}
