package mirror

import (
	"encoding/json"
	"mime"
	"strings"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// cataloguedDigests bounds the catalog, at about 300 bytes each. An image
	// has some 20 digests in it.
	cataloguedDigests = 8192
	// learnedDigests bounds what one manifest may put into the catalog, so
	// that none flushes the others out. Images have at most 127 layers;
	// indexes of that many platforms do not exist.
	learnedDigests = 1024
	// maxManifest is the size that every registry must accept, and clients
	// read, by the OCI specification.
	maxManifest = 4 << 20
)

// entry is what is known of one digest that belongs to a repository: upstream
// has shown so, or a manifest names it that belongs there itself.
type entry struct {
	// size in bytes; zero or less: not known.
	size int64
	// mediaType of a manifest whose content was seen and verified; empty for
	// all else. The size is the content's own then.
	mediaType string
	// layers are those of the image that it is a layer of, itself among them,
	// with digests and sizes only. All of them share the slice.
	layers []ocispec.Descriptor
}

// catalog remembers sizes and membership of the digests of repositories. It is
// kept per repository, so that a manifest can make no claims about another
// repository's content.
type catalog struct {
	mu sync.Mutex
	c  *simplelru.LRU[catalogKey, entry]
}

type catalogKey struct {
	repo   Repository
	digest digest.Digest
}

func newCatalog() *catalog {
	return &catalog{c: newLRU[catalogKey, entry](cataloguedDigests)}
}

func (c *catalog) get(r Repository, d digest.Digest) (entry, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.c.Get(catalogKey{r, d})
}

// before are the large layers that come before d in its image: the client unpacks
// them first.
func (c *catalog) before(r Repository, d digest.Digest) (layers []digest.Digest) {
	e, _ := c.get(r, d)
	for _, l := range e.layers {
		if l.Digest == d {
			return layers
		}
		layers = append(layers, l.Digest)
	}
	return nil // too small to wait
}

// add merges what was learned into what is known: a verified manifest's size
// and type stay, and the image that was seen last.
func (c *catalog) add(r Repository, d digest.Digest, e entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := catalogKey{r, d}
	old, ok := c.c.Get(k)
	if ok && e.mediaType == "" && (old.mediaType != "" || e.size <= 0) {
		e.size, e.mediaType = old.size, old.mediaType
	}
	if e.layers == nil {
		e.layers = old.layers
	}
	c.c.Add(k, e)
}

// learn takes in a verified manifest that belongs to the repository, and what
// it names.
func (c *catalog) learn(r Repository, d digest.Digest, size int64, man manifest) {
	for _, x := range man.names[:min(len(man.names), learnedDigests)] {
		if _, err := parseDigest(x.Digest.String()); err == nil {
			c.add(r, x.Digest, entry{size: x.Size})
		}
	}
	for _, x := range man.layers {
		c.add(r, x.Digest, entry{size: x.Size, layers: man.layers})
	}
	c.add(r, d, entry{size: size, mediaType: man.mediaType})
}

// manifest is what the mirror reads from a manifest.
type manifest struct {
	mediaType string
	names     []ocispec.Descriptor
	layers    []ocispec.Descriptor // that are worth fetching ahead; see ahead
}

// The media types of Docker's formats, and of OCI's withdrawn artifact
// manifest.
const (
	typeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	typeDockerV1       = "application/vnd.docker.distribution.manifest.v1+json"
	typeDockerV1Signed = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

// parseManifest reads a manifest of any kind. hint is the media type that
// upstream gave, if any; content that says of itself what it is has the last
// word. ok is false when the content is no manifest.
func parseManifest(p []byte, hint string) (man manifest, ok bool) {
	var doc struct {
		specs.Versioned
		MediaType string               `json:"mediaType"`
		Config    *ocispec.Descriptor  `json:"config"`
		Layers    []ocispec.Descriptor `json:"layers"`
		Blobs     []ocispec.Descriptor `json:"blobs"`
		Manifests []ocispec.Descriptor `json:"manifests"`
		FSLayers  []struct {
			BlobSum digest.Digest `json:"blobSum"`
		} `json:"fsLayers"`
		Signatures json.RawMessage `json:"signatures"`
	}
	if len(p) > maxManifest || json.Unmarshal(p, &doc) != nil {
		return manifest{}, false
	}
	if doc.Config != nil {
		man.names = append(man.names, *doc.Config)
	}
	man.names = append(append(append(man.names, doc.Manifests...), doc.Layers...), doc.Blobs...)
	man.layers = worthAhead(doc.Layers)
	for _, l := range doc.FSLayers {
		man.names = append(man.names, ocispec.Descriptor{Digest: l.BlobSum})
	}
	switch {
	case isManifestType(doc.MediaType):
		man.mediaType = doc.MediaType
	case doc.SchemaVersion == 1 && doc.FSLayers != nil && doc.Signatures != nil:
		man.mediaType = typeDockerV1Signed
	case doc.SchemaVersion == 1 && doc.FSLayers != nil:
		man.mediaType = typeDockerV1
	case doc.Manifests != nil && doc.Config == nil && doc.Layers == nil:
		man.mediaType = ocispec.MediaTypeImageIndex
	case doc.Config != nil && doc.Manifests == nil:
		man.mediaType = ocispec.MediaTypeImageManifest
	case isManifestType(hint):
		man.mediaType = hint
	}
	return man, man.mediaType != ""
}

// isManifestType says whether a media type may stand in a manifest's
// Content-Type header: it comes from the content, that is from anybody.
func isManifestType(s string) bool {
	if len(s) > 255 || !strings.HasPrefix(s, "application/") {
		return false
	}
	t, params, err := mime.ParseMediaType(s)
	return err == nil && t == s && len(params) == 0 &&
		(strings.HasSuffix(s, "+json") || strings.HasSuffix(s, "+prettyjws"))
}

// newLRU returns an LRU map of a constant size.
func newLRU[K comparable, V any](size int) *simplelru.LRU[K, V] {
	c, err := simplelru.NewLRU[K, V](size, nil)
	if err != nil {
		panic(err) // only for a size below one
	}
	return c
}
