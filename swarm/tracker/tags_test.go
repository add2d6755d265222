package tracker

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// FuzzReference: what passes the checks is of bounded size on the wire, whatever is in
// it, and comes out of a tracker as it went in.
func FuzzReference(f *testing.F) {
	f.Add([]byte(`{"ref":"registry.example.com/app:v1","mediaType":"application/vnd.oci.image.index.v1+json","digest":"` + blobD.String() + `","size":3,"age":5}`))
	f.Add([]byte(`{"ref":"span sha256:00 3","digest":"` + blobD.String() + `","age":-1}`))
	f.Add([]byte(`{"ref":"\u0000<>","digest":"sha256:x","by":"me"}`))
	f.Fuzz(func(t *testing.T, p []byte) {
		var r Reference
		if json.Unmarshal(p, &r) != nil || CheckRef(r.Ref) != nil || r.Check() != nil {
			return
		}
		r.By = ""
		const most = 2800
		if out, err := json.Marshal(r); err != nil || len(out) > most {
			t.Fatalf("%d bytes on the wire: %v", len(out), err)
		}
		v := newInventory(time.Minute)
		v.adopt(r, "a", epoch)
		if got := v.last(r.Ref, epoch); got == nil || got.Digest != r.Digest || got.By != "a" {
			t.Fatalf("%+v became %+v", r, got)
		}
	})
}

func TestAdopt(t *testing.T) {
	v := newInventory(time.Minute)
	known := func(digest string, age time.Duration) Reference {
		return Reference{Ref: "r", Resolution: Resolution{Digest: blobD, MediaType: digest, Age: age}}
	}
	// A handover settles nothing about who asks upstream.
	v.lookup("r", "asker", time.Minute, epoch)
	v.adopt(known("old", time.Hour), "asker", epoch)
	if a := v.lookup("r", "other", time.Minute, epoch); !a.Wait || a.Known == nil || a.Known.Age != time.Hour {
		t.Errorf("got %+v, want to wait, and an answer of an hour ago", a)
	}
	// Only to know does not claim to ask.
	v.publish("r", "asker", nil, epoch)
	v.last("r", epoch)
	if a := v.lookup("r", "other", time.Minute, epoch); !a.Ask {
		t.Errorf("got %+v, want the order to ask", a)
	}
	v.adopt(known("new", time.Minute), "x", epoch)
	v.adopt(known("older", 2*time.Hour), "y", epoch)
	v.adopt(Reference{Ref: SpanRef(blobD, 1), Resolution: Resolution{Digest: blobD}}, "x", epoch)
	v.lookup("asked for only", "a", time.Minute, epoch)
	want := []Reference{{Ref: "r", Resolution: Resolution{Digest: blobD, MediaType: "new", Age: 2 * time.Minute}}}
	if diff := cmp.Diff(want, v.references(epoch.Add(time.Minute))); diff != "" {
		t.Errorf("to hand over (-want +got):\n%s", diff)
	}
}
