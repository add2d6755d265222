package node

import (
	"net/http"
	"sync"
	"time"
)

// quietFor is how long no response may be under way before the mirror of a node
// that stops is closed. containerd asks for three layers of an image at a time and
// for the next one when one is committed, which takes a moment on a disk.
const quietFor = time.Second

// underway counts the responses of a server.
type underway struct {
	mu   sync.Mutex
	n    int
	last time.Time // when the last one ended
}

func (u *underway) count(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.change(1)
		defer u.change(-1)
		h.ServeHTTP(w, r)
	})
}

func (u *underway) change(by int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.n += by
	u.last = time.Now()
}

// wait waits until none has been under way for quietFor, until the deadline at
// most.
func (u *underway) wait(deadline time.Time) {
	for {
		u.mu.Lock()
		n, left := u.n, time.Until(u.last.Add(quietFor))
		u.mu.Unlock()
		if n == 0 && left <= 0 || time.Now().After(deadline) {
			return
		}
		if n > 0 {
			left = quietFor / 4
		}
		time.Sleep(min(left, time.Until(deadline)))
	}
}
