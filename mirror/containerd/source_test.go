package containerd

import (
	"fmt"
	"testing"
)

func TestSources(t *testing.T) {
	c := newCtrd(t).start()
	const one, two = "k8s.io", "moby"
	from := map[string]string{sourceLabel + "registry.example.com": "app,other"}
	for i := range 5 {
		c.put(one, fmt.Appendf(nil, "pulled %d", i), from)
	}
	for i := range 3 {
		c.put(one, fmt.Appendf(nil, "imported %d", i), map[string]string{"containerd.io/gc.root": "x", sourceLabel + "empty.example.com": ""})
	}
	c.put(one, []byte("both"), nil)
	c.put(two, []byte("both"), from) // elsewhere it is known
	unlabelled, all, err := Sources(t.Context(), c.socket)
	if err != nil || unlabelled != 3 || all != 9 {
		t.Errorf("%d of %d blobs without a source, want 3 of 9: %v", unlabelled, all, err)
	}
	if _, _, err := Sources(t.Context(), c.socket+"-gone"); err == nil {
		t.Error("no error without containerd")
	}
}
