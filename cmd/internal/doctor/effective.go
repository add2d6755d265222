package doctor

import (
	"fmt"
	"maps"
	"strconv"
	"strings"
)

// Names of the plugin whose registry.config_path counts.
const (
	criPlugin    = "io.containerd.grpc.v1.cri"   // containerd 1.x, files of version 2
	criPlugin1   = "cri"                         // the same in files of version 1, or of none
	imagesPlugin = "io.containerd.cri.v1.images" // containerd 2.x
)

// defaultConfigPath is what containerd goes by from 2.2 on when nothing is set.
const defaultConfigPath = "/etc/containerd/certs.d:/etc/docker/certs.d"

// release is a version of containerd's, as far as it decides how configuration is
// read. What it decides was read in 1.7.35, 2.0.5, 2.1.4, 2.2.0 and 2.3.4.
type release struct{ major, minor int }

// newest is what is assumed where containerd does not tell.
var newest = release{2, 3}

// parseRelease reads "v2.3.4", "1.6.20~ds1"; false for what is no version.
func parseRelease(version string) (release, bool) {
	major, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	a, err1 := strconv.Atoi(major)
	b, err2 := strconv.Atoi(minor)
	return release{a, b}, err1 == nil && err2 == nil
}

func (r release) atLeast(major, minor int) bool {
	return r.major > major || r.major == major && r.minor >= minor
}

// fileVersion is the highest of a configuration file that it reads.
func (r release) fileVersion() int {
	switch {
	case r.atLeast(2, 3):
		return 4
	case r.major >= 2:
		return 3
	default:
		return 2
	}
}

// plugin is the section that counts, in files of the highest version.
func (r release) plugin() string {
	if r.major >= 2 {
		return imagesPlugin
	}
	return criPlugin
}

// effective is what containerd makes of its files.
type effective struct {
	// refused is why it does not start with them, if it does not.
	refused string
	// configPath is config_path, the default included; set tells that it is none.
	configPath string
	set        bool
	// mirrors and tls tell that registry.mirrors and registry.configs.*.tls are set.
	mirrors, tls bool
	// local names the setting for which pulls of CRI are made by containerd's older
	// code rather than by its transfer service; empty if they are not.
	local   string
	discard bool
	// version is that of the merged configuration.
	version int
}

// section is a table of TOML.
type section = map[string]any

// merge is what a release makes of files, given in the order in which it reads
// them.
func merge(r release, files []configFile) effective {
	plugins, version := section{}, 1
	if r.major >= 2 {
		version = r.fileVersion()
	}
	for _, f := range files {
		switch {
		case f.Version > r.fileVersion():
			return effective{refused: fmt.Sprintf("%s is of version %d, and containerd %d.%d knows up to %d", f.path, f.Version, r.major, r.minor, r.fileVersion())}
		case r.atLeast(2, 3) && files[0].Version > 0 && f.Version > files[0].Version:
			return effective{refused: fmt.Sprintf("%s is of version %d, higher than %d of %s, which imports it", f.path, f.Version, files[0].Version, files[0].path)}
		}
		own := maps.Clone(f.Plugins)
		if r.major >= 2 && f.Version <= 1 {
			rename(own, criPlugin1, criPlugin)
		}
		switch {
		case r.atLeast(2, 3):
			if f.Version < r.fileVersion() {
				migrate(own)
			}
			deepMerge(plugins, own)
		case r.major >= 2:
			deepMerge(plugins, own)
		default:
			maps.Copy(plugins, own) // a section replaces an earlier file's as a whole
		}
		// 2.x takes a file of version 1 for one of its own as soon as it is read,
		// and until 2.2 for one that needs no migration then.
		if f.Version >= 2 {
			version = f.Version
		}
	}
	e := effective{version: version}
	switch {
	case r.major < 2:
		delete(plugins, imagesPlugin) // not known there
		if version < 2 {
			delete(plugins, criPlugin)
			rename(plugins, criPlugin1, criPlugin)
		}
		migrate(plugins, "discard_unpacked_layers")
	case !r.atLeast(2, 3) && version < r.fileVersion():
		migrate(plugins)
	}
	e.read(r, sub(plugins, imagesPlugin))
	return e
}

// read takes over what matters of a section in the form of [imagesPlugin]'s.
func (e *effective) read(r release, images section) {
	registry := sub(images, "registry")
	e.configPath, _ = registry["config_path"].(string)
	e.set = e.configPath != ""
	e.mirrors = len(sub(registry, "mirrors")) > 0
	for _, c := range sub(registry, "configs") {
		if c, ok := c.(section); ok && c["tls"] != nil {
			e.tls = true
		}
	}
	if !e.set && !e.mirrors && r.atLeast(2, 2) {
		e.configPath = defaultConfigPath
	}
	e.discard = images["discard_unpacked_layers"] == true
	// The transfer service came with 2.1, and gives way to these.
	for _, c := range []struct {
		name string
		is   bool
	}{
		{"use_local_image_pull", images["use_local_image_pull"] == true},
		{"discard_unpacked_layers", e.discard},
		{"disable_snapshot_annotations", images["disable_snapshot_annotations"] == false},
		{"max_concurrent_downloads", images["max_concurrent_downloads"] != nil && images["max_concurrent_downloads"] != int64(3)},
		{"image_pull_with_sync_fs", images["image_pull_with_sync_fs"] == true},
		{"registry.mirrors", e.mirrors},
		{"registry.configs", len(sub(registry, "configs")) > 0},
		{"registry.auths", len(sub(registry, "auths")) > 0},
	} {
		if c.is && e.local == "" {
			e.local = c.name
		}
	}
	if !r.atLeast(2, 1) {
		e.local = fmt.Sprintf("containerd %d.%d", r.major, r.minor)
	}
}

// migrate moves what matters from the section of 1.x to that of 2.x, as containerd
// does with files of lower versions. always are settings of "containerd" that move
// also without runtimes beside them.
func migrate(plugins section, always ...string) {
	src := sub(plugins, criPlugin)
	if src == nil {
		return
	}
	images := maps.Clone(sub(plugins, imagesPlugin))
	if images == nil {
		images = section{}
	}
	move := func(from section, names ...string) {
		for _, n := range names {
			if v, ok := from[n]; ok {
				images[n] = v
			}
		}
	}
	move(src, "registry", "max_concurrent_downloads", "image_pull_with_sync_fs")
	daemon := sub(src, "containerd")
	move(daemon, always...)
	if daemon["runtimes"] != nil {
		move(daemon, "disable_snapshot_annotations", "discard_unpacked_layers")
	}
	plugins[imagesPlugin] = images
}

func rename(plugins section, from, to string) {
	if v, ok := plugins[from]; ok {
		delete(plugins, from)
		plugins[to] = v
	}
}

// deepMerge writes what is in src over dst, table by table.
func deepMerge(dst, src section) {
	for k, v := range src {
		table, ok := v.(section)
		if !ok {
			dst[k] = v
			continue
		}
		into := maps.Clone(sub(dst, k))
		if into == nil {
			into = section{}
		}
		deepMerge(into, table)
		dst[k] = into
	}
}

// sub is a table within a table, nil if there is none.
func sub(s section, name string) section {
	t, _ := s[name].(section)
	return t
}
