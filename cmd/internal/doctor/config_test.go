package doctor

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	good3 = "version = 3\n[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n"
	good1 = "[plugins.cri.registry]\nconfig_path = \"/etc/containerd/certs.d\"\n"
	good2 = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d/\"\n"
)

// TestConfig: e2e has containerd start with most of these.
func TestConfig(t *testing.T) {
	const (
		v16, v17, v20, v21, v22, v23 = "1.6.20~ds1", "v1.7.35", "v2.0.5", "v2.1.4", "v2.2.0", "v2.3.4"

		version3 = "version = 3\n"
		images   = "[plugins.\"io.containerd.cri.v1.images\"]\n"
		cri      = "[plugins.\"io.containerd.grpc.v1.cri\"]\n"
	)
	two := func(text string) string { return strings.Replace(text, "certs.d", "certs.d:/etc/docker/certs.d", 1) }
	version := func(v, text string) string { return "version = " + v + text[len("version = 2"):] }
	imports := func(text string) string { return "imports = [\"/etc/containerd/conf.d/*.toml\"]\n" + text }
	mirrors := "[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = [\"https://m\"]\n"
	tls := "[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.\"docker.io\".tls]\nca_file = \"/ca\"\n"
	runtime := "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.nvidia]\nruntime_type = \"io.containerd.runc.v2\"\n"

	for _, c := range []struct {
		name     string
		versions []string
		files    map[string]string
		want     []string
		shows    string
	}{
		{"version 3", []string{v20, v21, v22, v23, ""}, map[string]string{"config.toml": good3}, nil, ""},
		{"version 2", []string{v16, v17, v20, v23, ""}, map[string]string{"config.toml": good2}, nil, ""},
		{"version 1", []string{v16, v17, v23}, map[string]string{"config.toml": good1}, nil, ""},
		{"version 1, which 2.0 does not migrate", []string{v20, v22}, map[string]string{"config.toml": good1}, []string{"config-plugin"}, "cri.v1.images"},
		{"no file", []string{v23, ""}, nil, []string{"config-path-unset"}, "version = 3\n[plugins.\"io.containerd.cri.v1.images\".registry]\n  config_path = \"/etc/containerd/certs.d\""},
		{"no file with 1.x", []string{v17}, nil, []string{"config-path-unset"}, "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]"},
		{"not set", []string{v20, v23}, map[string]string{"config.toml": version3}, []string{"config-path-unset"}, "config_path = \"/etc/containerd/certs.d\""},
		{"not set, pulled locally", []string{v22, v23}, map[string]string{"config.toml": version3 + images + "use_local_image_pull = true\n"}, nil, ""},
		{"not set, pulled locally, without a default", []string{v20, v21}, map[string]string{"config.toml": version3 + images + "use_local_image_pull = true\n"},
			[]string{"config-path-unset"}, ""},
		{"two directories", []string{v21, v22, v23, ""}, map[string]string{"config.toml": two(good3)}, []string{"config-path-two"}, "/etc/docker/certs.d"},
		{"two directories before the transfer service", []string{v20}, map[string]string{"config.toml": two(good3)}, nil, ""},
		{"two directories with 1.x", []string{v16, v17}, map[string]string{"config.toml": two(good2)}, nil, ""},
		{"elsewhere", []string{v20, v23}, map[string]string{"config.toml": strings.Replace(good3, "/etc/containerd/certs.d", "/opt/hosts", 1)},
			[]string{"config-path-elsewhere"}, "/opt/hosts"},
		{"a section of 1.x in version 3", []string{v20, v21, v22}, map[string]string{"config.toml": version("3", good2)}, []string{"config-plugin"}, "cri.v1.images"},
		{"which 2.3 understands", []string{v23}, map[string]string{"config.toml": version("3", good2)}, nil, ""},
		{"but not in version 4", []string{v23}, map[string]string{"config.toml": version("4", good2)}, []string{"config-plugin"}, "cri.v1.images"},
		{"a section of 2.x in version 2", []string{v16, v17, ""}, map[string]string{"config.toml": version("2", good3)}, []string{"config-plugin"}, "grpc.v1.cri"},
		{"which 2.x understands", []string{v20, v23}, map[string]string{"config.toml": version("2", good3)}, nil, ""},
		{"a version too high", []string{v16, v17}, map[string]string{"config.toml": good3}, []string{"config-refused"}, "version 3"},
		{"mirrors", []string{v17, v23}, map[string]string{"config.toml": "version = 2\n" + mirrors}, []string{"config-legacy"}, "mirrors"},
		{"mirrors and config_path", []string{v16, v20, v23}, map[string]string{"config.toml": good2 + mirrors}, []string{"config-legacy"}, "config_path"},
		{"authorities", []string{v17}, map[string]string{"config.toml": good2 + tls}, []string{"config-legacy"}, "configs"},
		{"authorities, which 2.x lets pass", []string{v23}, map[string]string{"config.toml": good2 + tls}, nil, ""},
		{"syntax", []string{v23}, map[string]string{"config.toml": "version = 3\n\n[plugins\n"}, []string{"config-unparsable"}, "line 3"},
		{"by an import that 1.6 looks for elsewhere", []string{v16}, map[string]string{"config.toml": "version = 2\nimports = [\"conf.d/*.toml\"]\n", "conf.d/a.toml": good2}, []string{"config-path-unset"}, ""},
		{"by an import of one file", []string{v16, v17}, map[string]string{"config.toml": "version = 2\nimports = [\"conf.d/a.toml\"]\n", "conf.d/a.toml": good2}, nil, ""},
		{"by import", []string{v20, v23}, map[string]string{"config.toml": "version = 3\nimports = [\"conf.d/*.toml\"]\n", "conf.d/a.toml": good3}, nil, ""},
		{"an import that is not there", []string{v23}, map[string]string{"config.toml": "imports = [\"a.toml\"]\n" + good3}, []string{"config-unparsable"}, "imported by /etc/containerd/config.toml"},
		{"the last import counts", []string{v20, v23}, map[string]string{
			"config.toml":   imports(good3),
			"conf.d/a.toml": good3, "conf.d/b.toml": strings.Replace(good3, "certs.d", "other", 1),
		}, []string{"config-overridden"}, "conf.d/b.toml"},
		{"an import of a higher version", []string{v23}, map[string]string{"config.toml": imports(good2), "conf.d/a.toml": version3}, []string{"config-refused"}, "conf.d/a.toml"},
		{"which makes 2.0 forget", []string{v20, v22}, map[string]string{"config.toml": imports(good2), "conf.d/a.toml": version3}, []string{"config-plugin"}, "config.toml"},
		{"another setting of the section", []string{v16, v17}, map[string]string{"config.toml": imports(good2), "conf.d/nvidia.toml": "version = 2\n" + runtime},
			[]string{"config-overridden"}, "conf.d/nvidia.toml"},
		{"which 2.x merges", []string{v20, v23}, map[string]string{"config.toml": imports(good2), "conf.d/nvidia.toml": "version = 2\n" + runtime}, nil, ""},
		{"an import in circles", []string{v20, v23}, map[string]string{"config.toml": "imports = [\"config.toml\"]\n" + good3}, nil, ""},
		{"discards layers", []string{v20, v23}, map[string]string{"config.toml": good3 + images + "discard_unpacked_layers = true\n"},
			[]string{"discard-unpacked-layers"}, ""},
		{"discards layers with 1.x", []string{v17}, map[string]string{"config.toml": good2 + "[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndiscard_unpacked_layers = true\n"},
			[]string{"discard-unpacked-layers"}, ""},
		{"discards layers, which hides the two directories", []string{v22, v23}, map[string]string{"config.toml": two(good3) + images + "discard_unpacked_layers = true\n"},
			[]string{"discard-unpacked-layers", "config-path-two"}, "transfer service"},
		{"another bound on downloads", []string{v23}, map[string]string{"config.toml": two(good2) + cri + "max_concurrent_downloads = 5\n"},
			[]string{"config-path-two"}, "max_concurrent_downloads"},
	} {
		files := map[string]string{}
		for name, text := range c.files {
			files["/etc/containerd/"+name] = text
		}
		for _, version := range c.versions {
			t.Run(c.name+"/"+version, func(t *testing.T) {
				found := checkConfig(node(t, files), version)
				if diff := cmp.Diff(append([]string{}, c.want...), ids(found)); diff != "" {
					t.Errorf("%s%+v", diff, found)
				}
				if c.shows != "" && !evidence(found, c.shows) {
					t.Errorf("%+v does not show %q", found, c.shows)
				}
			})
		}
	}
}
