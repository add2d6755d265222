package doctor

import (
	"fmt"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"
)

// checkStorage looks whether there is room for blobs, and whether those that are
// there are whole.
func checkStorage(e *Env, s shoal) []Finding {
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
		free := int64(fs.Bavail) * fs.Bsize
		if free < e.DiskReserve || fs.Files > 0 && fs.Ffree*100 < fs.Files {
			all = append(all, Finding{
				ID: "disk-full", Severity: Error, Title: "the piece store's disk is full",
				Evidence: []string{fmt.Sprintf("%s: %s free, of which %s are reserved; %d of %d inodes free",
					e.DataDir, humanize.IBytes(uint64(max(free, 0))), humanize.IBytes(uint64(e.DiskReserve)), fs.Ffree, fs.Files)},
				Consequence: "pulls are left to the registry, for there is no room for pieces",
				Fix:         "free the disk, or put --data-dir on another one",
			})
		}
	}
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
	if n := s.metrics["shoal_containerd_damaged_blobs"]; n > 0 {
		all = append(all, Finding{
			ID: "content-damaged", Severity: Warning, Title: "containerd holds damaged content",
			Evidence:    []string{fmt.Sprintf("%.0f blobs whose files are not as long as they should be", n)},
			Consequence: "they are not served to others; pods of these images may not start here",
			Fix:         "the log of 'shoal serve' names the digests: remove the images that have them ('crictl rmi') and pull them again",
		})
	}
	return all
}
