package members

import (
	"bytes"
	"log"
	"time"

	"github.com/rs/zerolog"
)

// Anyone who can send a datagram makes the library write a line, so what it
// writes is capped: libraryBurst lines of a level per libraryPeriod.
const (
	libraryBurst  = 20
	libraryPeriod = 10 * time.Second
)

// newLibraryLog passes on what memberlist logs. Its "errors" are mostly other
// nodes' absence or strangers' packets, and nothing this process can do
// anything about: they become warnings.
func newLibraryLog(to zerolog.Logger) *log.Logger {
	return log.New(bridge{to.Sample(zerolog.LevelSampler{
		InfoSampler: &zerolog.BurstSampler{Burst: libraryBurst, Period: libraryPeriod},
		WarnSampler: &zerolog.BurstSampler{Burst: libraryBurst, Period: libraryPeriod},
	})}, "", 0)
}

// bridge turns lines like "[WARN] memberlist: text" into events.
type bridge struct{ log zerolog.Logger }

func (b bridge) Write(p []byte) (int, error) {
	line := bytes.TrimSpace(p)
	level := zerolog.DebugLevel
	if word, rest, ok := bytes.Cut(line, []byte("] ")); ok && len(word) > 0 && word[0] == '[' {
		line = rest
		switch string(word[1:]) {
		case "ERR", "ERROR", "WARN":
			level = zerolog.WarnLevel
		case "INFO":
			level = zerolog.InfoLevel
		}
	}
	line = bytes.TrimPrefix(line, []byte("memberlist: "))
	b.log.WithLevel(level).Str("component", "gossip").Msg(string(line))
	return len(p), nil
}
