package upstream

import (
	"encoding/json"
	"mime"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// inferMediaType tells what a manifest is from its content: the mediaType
// field, or the fields that only one kind has. It returns "" when neither
// helps.
func inferMediaType(body []byte) string {
	var m struct {
		MediaType string          `json:"mediaType"`
		Config    json.RawMessage `json:"config"`
		Manifests json.RawMessage `json:"manifests"`
	}
	if json.Unmarshal(body, &m) != nil {
		return ""
	}
	if mt, _, err := mime.ParseMediaType(m.MediaType); err == nil {
		return mt
	}
	switch {
	case m.Manifests != nil && m.Config == nil:
		return v1.MediaTypeImageIndex
	case m.Config != nil && m.Manifests == nil:
		return v1.MediaTypeImageManifest
	}
	return ""
}
