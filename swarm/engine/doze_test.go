package engine

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/shoal-dev/shoal/chunker"
)

// counted counts the reads of a connection that brought something.
type counted struct {
	net.Conn
	reads int
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.reads++
	}
	return n, err
}

// pair returns both ends of a TCP connection, with TLS or without; the second is
// dressed, and its reads from the kernel are counted.
func pair(t *testing.T, secure bool) (out, in net.Conn, d *doze, kernel *counted) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if out, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if in, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hangUp(out); hangUp(in) })
	if err := in.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var server, client *tls.Config
	if secure {
		server, client = testTLS(t)
		out = tls.Client(out, client)
	}
	in, d = dress(in, server, tls.Server)
	if d == nil {
		t.Fatal("no doze on TCP")
	}
	kernel = &counted{Conn: d.Conn}
	d.Conn = kernel
	return out, in, d, kernel
}

// readExpected reads len(p) bytes as a link reads a chunk.
func readExpected(in io.Reader, d *doze, p []byte) error {
	defer d.expect(0)
	for len(p) > 0 {
		d.expect(len(p))
		n, err := in.Read(p)
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// TestDozeLosesNothing sends chunks between messages, in writes of all sizes, some
// of them late. Each message is answered before more is sent, so a reader that
// waits for bytes that nobody has promised stands still.
func TestDozeLosesNothing(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(map[bool]string{false: "plain", true: "tls"}[secure], func(t *testing.T) {
			rng := rand.New(rand.NewPCG(7, 7))
			out, in, d, _ := pair(t, secure)
			failed := make(chan error, 1)
			var sizes []int
			for range 60 {
				sizes = append(sizes, rng.IntN(40), 1+rng.IntN(chunker.ChunkLength*5/4))
			}
			go func() {
				failed <- func() error {
					src := rand.New(rand.NewPCG(1, 1))
					for _, size := range sizes {
						for size > 0 {
							n := min(size, 1+src.IntN(50_000))
							p := make([]byte, n)
							for i := range p {
								p[i] = byte(src.Uint32())
							}
							if src.IntN(4) == 0 {
								time.Sleep(time.Millisecond)
							}
							if _, err := out.Write(p); err != nil {
								return err
							}
							size -= n
						}
						if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
							return err
						}
					}
					return nil
				}()
			}()
			src := rand.New(rand.NewPCG(1, 1))
			for k, size := range sizes {
				got := make([]byte, size)
				var err error
				if k%2 == 0 {
					_, err = io.ReadFull(in, got)
				} else {
					err = readExpected(in, d, got)
				}
				if err != nil {
					t.Fatalf("read %d of %d bytes: %v", k, size, err)
				}
				want := make([]byte, 0, size)
				for len(want) < size {
					n := min(size-len(want), 1+src.IntN(50_000))
					for range n {
						want = append(want, byte(src.Uint32()))
					}
					src.IntN(4)
				}
				if !bytes.Equal(got, want) {
					t.Fatalf("read %d is not what was written", k)
				}
				if _, err := in.Write([]byte{0}); err != nil {
					t.Fatal(err)
				}
			}
			if err := <-failed; err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestDozeSleeps: a chunk that comes in many packets takes a few reads.
func TestDozeSleeps(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(map[bool]string{false: "plain", true: "tls"}[secure], func(t *testing.T) {
			out, in, d, kernel := pair(t, secure)
			go func() {
				_, _ = out.Write([]byte{0}) // an error shows at the reader
				for range chunker.ChunkLength / 4096 {
					time.Sleep(time.Millisecond)
					_, _ = out.Write(make([]byte, 4096))
				}
			}()
			if _, err := io.ReadFull(in, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			kernel.reads = 0
			if err := readExpected(in, d, make([]byte, chunker.ChunkLength)); err != nil {
				t.Fatal(err)
			}
			if kernel.reads > 4 {
				t.Errorf("%d reads for a chunk of which 32 parts came", kernel.reads)
			}
		})
	}
}

// TestDozeEnds: a stream that ends before what was expected of it wakes the reader,
// who gets what came.
func TestDozeEnds(t *testing.T) {
	out, in, d, _ := pair(t, false)
	if _, err := out.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(20*time.Millisecond, func() { hangUp(out) })
	d.expect(100_000)
	got, err := io.ReadAll(in)
	if len(got) != 1000 || err != nil && !errors.Is(err, io.EOF) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}

func TestDozeNotOnTCP(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	c, d := dress(a, nil, tls.Server)
	if c != a || d != nil {
		t.Errorf("a pipe is dressed as %T, %v", c, d)
	}
	d.expect(10) // links do not look first
}
