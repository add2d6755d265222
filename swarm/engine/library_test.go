package engine

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anacrolix/torrent"
	"github.com/anacrolix/torrent/metainfo"
	pp "github.com/anacrolix/torrent/peer_protocol"
	"github.com/anacrolix/torrent/storage"

	"github.com/shoal-dev/shoal/chunker"
)

// The engine speaks BitTorrent and not something like it: it trades with
// anacrolix/torrent's own client, in both directions. That one checks pieces
// with sha1 placeholders that cannot match, so its storage vouches for them.

// trusting is a blob in memory whose pieces are taken for good.
type trusting struct {
	id chunker.Identity

	mu   sync.Mutex
	data []byte
	have []bool
}

func (s *trusting) OpenTorrent(context.Context, *metainfo.Info, metainfo.Hash) (storage.TorrentImpl, error) {
	return storage.TorrentImpl{
		Piece: func(p metainfo.Piece) storage.PieceImpl { return trustedPiece{s, p.Index(), p.Offset()} },
		Close: func() error { return nil },
	}, nil
}

type trustedPiece struct {
	s   *trusting
	i   int
	off int64
}

func (p trustedPiece) ReadAt(b []byte, off int64) (int, error) {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	return copy(b, p.s.data[p.off+off:]), nil
}

func (p trustedPiece) WriteAt(b []byte, off int64) (int, error) {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	return copy(p.s.data[p.off+off:], b), nil
}

func (p trustedPiece) MarkComplete() error {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	p.s.have[p.i] = true
	return nil
}

func (p trustedPiece) MarkNotComplete() error { return nil }

func (p trustedPiece) Completion() storage.Completion {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	return storage.Completion{Ok: true, Complete: p.s.have[p.i]}
}
func (p trustedPiece) SelfHash() (metainfo.Hash, error) { return p.s.id.Placeholder(p.i), nil }

// plainDialer dials what follows "tcp:".
type plainDialer struct{}

func (plainDialer) DialerNetwork() string { return "tcp" }
func (plainDialer) Dial(ctx context.Context, addr string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "tcp", strings.TrimPrefix(addr, "tcp:"))
}

type plainAddr string

func (a plainAddr) String() string { return "tcp:" + string(a) }

// library starts the library's client on loopback with a torrent of c.
func library(t *testing.T, c content, have bool) (*torrent.Torrent, *trusting, string) {
	t.Helper()
	tc := torrent.NewDefaultClientConfig()
	tc.NoDHT, tc.DisableTrackers, tc.DisablePEX, tc.DisableWebtorrent, tc.DisableWebseeds = true, true, true, true, true
	tc.NoDefaultPortForwarding, tc.DisableUTP, tc.DisableTCP, tc.Seed, tc.AlwaysWantConns = true, true, true, true, true
	tc.HeaderObfuscationPolicy = torrent.HeaderObfuscationPolicy{Preferred: false, RequirePreferred: true}
	s := &trusting{id: c.id, data: make([]byte, len(c.data)), have: make([]bool, c.pieces())}
	if have {
		copy(s.data, c.data)
		for i := range s.have {
			s.have[i] = true
		}
	}
	tc.DefaultStorage = s
	cl, err := torrent.NewClient(tc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cl.Close() })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	cl.AddDialer(plainDialer{})
	cl.AddListener(l)
	tor, _ := cl.AddTorrentOpt(torrent.AddTorrentOpts{
		InfoHash: c.id.InfoHash(), Storage: s, ChunkSize: pp.Integer(chunker.ChunkLength),
		InfoBytes: c.id.InfoBytes(), DisableInitialPieceCheck: true,
	})
	return tor, s, l.Addr().String()
}

func TestLibraryDownloadsFromUs(t *testing.T) {
	c := newContent(t, 5*chunker.MinPieceLength+1000)
	m := newNode(t, "n", plain()).join(t, c, Events{})
	for i := range c.pieces() {
		m.bring(t, i, c.piece(i))
	}
	tor, s, _ := library(t, c, false)
	tor.AddPeers([]torrent.PeerInfo{{Addr: plainAddr(m.node.addr)}})
	tor.DownloadAll()
	deadline := time.After(20 * time.Second)
	for tor.BytesMissing() > 0 {
		select {
		case <-deadline:
			t.Fatalf("%d bytes are missing after 20 s", tor.BytesMissing())
		case <-time.After(10 * time.Millisecond):
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !bytes.Equal(s.data, c.data) {
		t.Error("wrong bytes")
	}
}

func TestWeDownloadFromLibrary(t *testing.T) {
	for _, dialled := range []bool{false, true} {
		t.Run(fmt.Sprintf("dialled=%v", dialled), func(t *testing.T) {
			c := newContent(t, 5*chunker.MinPieceLength+1000)
			tor, _, addr := library(t, c, true)
			m := newNode(t, "n", plain()).join(t, c, Events{})
			for i := range c.pieces() {
				m.want(t, i, chunker.SumOf(c.piece(i)))
			}
			if dialled {
				tor.AddPeers([]torrent.PeerInfo{{Addr: plainAddr(m.node.addr)}})
			} else {
				m.AddPeers([]Peer{{"library", addr}})
			}
			m.awaitAll(t)
			got := make([]byte, len(c.data))
			if _, err := m.blob.ReadAt(got, 0); err != nil && err != io.EOF || !bytes.Equal(got, c.data) {
				t.Errorf("wrong bytes: %v", err)
			}
		})
	}
}
