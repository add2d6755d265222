package containerd

import (
	"strings"
	"testing"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

func TestKeyOf(t *testing.T) {
	t.Parallel()
	good := digest.FromString("x")
	for _, tc := range []struct {
		name string
		d    digest.Digest
		ok   bool
	}{
		{"canonical", good, true},
		{"empty", "", false},
		{"bare hex", digest.Digest(good.Encoded()), false},
		{"upper case", digest.Digest("sha256:" + strings.ToUpper(good.Encoded())), false},
		{"short", good[:len(good)-1], false},
		{"long", good + "0", false},
		{"another algorithm", digest.SHA512.FromString("x"), false},
		{"path", digest.Digest("sha256:" + strings.Repeat("../", 21) + "x"), false},
		{"not hex", digest.Digest("sha256:" + strings.Repeat("g", 64)), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			k, ok := keyOf(tc.d)
			if ok != tc.ok {
				t.Fatalf("accepted: %v", ok)
			}
			if ok && k.digest() != tc.d {
				t.Errorf("back: %s", k.digest())
			}
		})
	}
}

// FuzzKey: what is accepted is canonical, as go-digest sees it.
func FuzzKey(f *testing.F) {
	for _, s := range []string{"", "sha256:", digest.FromString("x").String(), digest.SHA512.FromString("x").String(), "sha256:../../../../etc/passwd"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d := digest.Digest(s)
		k, ok := keyOf(d)
		if want := d.Validate() == nil && d.Algorithm() == digest.SHA256; ok != want {
			t.Fatalf("%q: %v, go-digest says %v", s, ok, want)
		}
		if ok && k.digest() != d {
			t.Fatalf("%q became %q", s, k.digest())
		}
	})
}

func event(topic string, m proto.Message) *types.Envelope {
	e, err := anypb.New(m)
	if err != nil {
		panic(err)
	}
	return &types.Envelope{Topic: topic, Namespace: "k8s.io", Event: e}
}

func TestReadEvent(t *testing.T) {
	t.Parallel()
	d := digest.FromString("x")
	k, _ := keyOf(d)
	named := hint{kind: hintDigest, key: k, namespace: "k8s.io"}
	for _, tc := range []struct {
		name string
		e    *types.Envelope
		want hint
	}{
		{"create", event("/content/create", &apievents.ContentCreate{Digest: d.String(), Size: 1}), named},
		{"delete", event("/content/delete", &apievents.ContentDelete{Digest: d.String()}), named},
		{"create sha512", event("/content/create", &apievents.ContentCreate{Digest: digest.SHA512.FromString("x").String()}), hint{}},
		{"create nothing", event("/content/create", &apievents.ContentCreate{}), hint{}},
		{"create without content", &types.Envelope{Topic: "/content/create"}, hint{}},
		{"create garbage", &types.Envelope{Topic: "/content/create", Event: &anypb.Any{Value: []byte{0xff}}}, hint{kind: hintUnnamed}},
		{"delete garbage", &types.Envelope{Topic: "/content/delete", Event: &anypb.Any{Value: []byte{0xff}}}, hint{kind: hintUnnamed}},
		{"image", event("/images/create", &apievents.ImageCreate{Name: "x"}), hint{kind: hintUnnamed}},
		{"no image", event("/images/delete", &apievents.ImageDelete{Name: "x"}), hint{kind: hintCollected}},
		{"no snapshot", event("/snapshot/remove", &apievents.SnapshotRemove{Key: "x"}), hint{kind: hintCollected}},
		{"something else", event("/tasks/exit", &apievents.TaskExit{}), hint{}},
		{"nothing", nil, hint{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if got := readEvent(tc.e); got != tc.want {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

// FuzzEvent: no event does more than name a digest.
func FuzzEvent(f *testing.F) {
	for _, topic := range []string{"/content/create", "/content/delete", "/images/update", "/x"} {
		p, err := proto.Marshal(&apievents.ContentCreate{Digest: digest.FromString("x").String(), Size: 5})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(topic, p)
		f.Add(topic, []byte{0xff})
		f.Add(topic, []byte(nil))
	}
	f.Fuzz(func(t *testing.T, topic string, value []byte) {
		h := readEvent(&types.Envelope{Topic: topic, Namespace: "a", Event: &anypb.Any{Value: value}})
		if h.probe || h.kind != hintDigest && (h.key != key{} || h.namespace != "") {
			t.Fatalf("%q: %+v", topic, h)
		}
		if h.kind == hintDigest && !strings.Contains(string(value), h.key.digest().String()) {
			t.Fatalf("%q: %s is not in the event", topic, h.key.digest())
		}
	})
}
