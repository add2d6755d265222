package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"github.com/shoal-dev/shoal/mirror/containerd"
)

// checkStorage looks whether there is room for blobs, and whether those that are
// there are whole.
func checkStorage(ctx context.Context, e *Env, s shoal) []Finding {
	var all []Finding
	var fs unix.Statfs_t
	if err := unix.Statfs(e.path(e.DataDir), &fs); err != nil {
		all = append(all, Finding{
			ID: "not-examined", Severity: Note, Title: "the piece store's disk was not examined",
			Evidence:    []string{fmt.Sprintf("%s: %v", e.DataDir, err)},
			Consequence: "nothing is known of its free space",
			Fix:         "run the doctor on the node or in Shoal's pod, as root",
		})
	} else {
		all = append(all, judgeDisk(e, fs)...)
	}
	all = append(all, checkContent(ctx, e, s)...)
	all = append(all, checkSources(ctx, e)...)
	if s.err != nil {
		return all
	}
	if n := s.metrics[`shoal_mirror_fallbacks_total{reason="disk_full"}`]; n > 0 {
		all = append(all, Finding{
			ID: "cache-full", Severity: Warning, Title: "there was no room for some blobs",
			Evidence: []string{fmt.Sprintf("%.0f pulls since the start; the piece store holds %s of %s", n,
				humanize.IBytes(uint64(s.metrics["shoal_cache_bytes"])), humanize.IBytes(uint64(s.metrics["shoal_cache_limit_bytes"])))},
			Consequence: "these pulls were left to the registry",
			Fix:         "raise --cache-size (data.cacheSize in the chart): it should hold the largest image twice",
		})
	}
	return all
}

// fewInodes is what is too little for the next image: a blob takes two.
const fewInodes = 100

func judgeDisk(e *Env, fs unix.Statfs_t) []Finding {
	var all []Finding
	free := int64(fs.Bavail) * fs.Bsize
	if free < e.DiskReserve {
		all = append(all, Finding{
			ID: "disk-full", Severity: Error, Title: "the piece store's disk is full",
			Evidence: []string{fmt.Sprintf("%s: %s free, and %s are to stay free (--disk-reserve)",
				e.DataDir, humanize.IBytes(uint64(max(free, 0))), humanize.IBytes(uint64(e.DiskReserve)))},
			Consequence: "pulls are left to the registry, for there is no room for pieces",
			Fix:         "free the disk, or put --data-dir on another one (data.dir in the chart)",
		})
	}
	// File systems that make inodes as needed say that there are none at all.
	if fs.Files > 0 && fs.Ffree < fewInodes {
		all = append(all, Finding{
			ID: "disk-inodes", Severity: Error, Title: "the piece store's disk has no inodes left",
			Evidence:    []string{fmt.Sprintf("%s: %d of %d inodes free", e.DataDir, fs.Ffree, fs.Files)},
			Consequence: "pulls are left to the registry, for no file can be made, whatever space is free",
			Fix:         "find what has so many files ('du --inodes -xd1 /', say), or put --data-dir on another file system (data.dir in the chart)",
		})
	}
	return all
}

// maxDamaged bounds the digests that are told.
const maxDamaged = 10

// checkContent looks whether what containerd says that it holds is there.
func checkContent(ctx context.Context, e *Env, s shoal) []Finding {
	f := Finding{
		ID: "content-damaged", Severity: Warning, Title: "containerd holds damaged content",
		Consequence: "it is not served to others; pods of these images may not start here",
		Fix:         "remove the images that have it ('crictl rmi') and pull them again",
	}
	damage, err := []containerd.Damage(nil), errors.New("no socket")
	if e.Socket != "" {
		damage, err = containerd.FindDamage(ctx, containerd.Config{Socket: e.socket(), Root: e.ContainerdRoot})
	}
	for _, d := range damage {
		f.Evidence = append(f.Evidence, d.String())
	}
	slices.Sort(f.Evidence)
	if n := len(f.Evidence); n > maxDamaged {
		f.Evidence = append(f.Evidence[:maxDamaged], fmt.Sprintf("and %d more", n-maxDamaged))
	}
	// Shoal's own count is up to a minute old, but goes without seeing the files.
	if n := s.metrics["shoal_containerd_damaged_blobs"]; err != nil && n > 0 {
		f.Evidence = []string{fmt.Sprintf("%.0f blobs whose files are gone, or not as long as they should be; the log of 'shoal serve' names the digests", n)}
	}
	if len(f.Evidence) == 0 {
		return nil
	}
	return []Finding{f}
}

// checkSources looks whether containerd knows from where its content is. Shoal does
// not need to.
func checkSources(ctx context.Context, e *Env) []Finding {
	if e.Socket == "" {
		return nil
	}
	// Where containerd does not answer, there is a finding that says so.
	ctx, cancel := context.WithTimeout(ctx, 2*askTimeout)
	defer cancel()
	unlabelled, total, err := containerd.Sources(ctx, e.socket())
	if err != nil || unlabelled == 0 {
		return nil
	}
	return []Finding{{
		ID: "content-unlabelled", Severity: Note, Title: "containerd does not know from where some content is",
		Evidence:    []string{fmt.Sprintf("%d of %d blobs have no label containerd.io/distribution.source; they were imported, or built here", unlabelled, total)},
		Consequence: "Shoal shares them all the same, with who asks by digest; pushes to another repository cannot mount them there from where they are, and upload them",
		Fix:         "nothing, as far as Shoal is concerned; pulled from a registry, they would be labelled",
	}}
}
