package engine

import (
	"io"
	"log/slog"

	alog "github.com/anacrolix/log"
	"github.com/rs/zerolog"
)

// libraryLoggers bring the library's two logging systems into ours. What it
// warns of is everyday life here (a peer that left), so all of it is debug;
// formatting costs, so below debug it is dropped before.
func libraryLoggers(l zerolog.Logger) (alog.Logger, *slog.Logger) {
	if l.GetLevel() > zerolog.DebugLevel {
		quiet := alog.NewLogger("torrent").WithFilterLevel(alog.Disabled)
		quiet.SetHandlers(alog.DiscardHandler)
		return quiet, slog.New(slog.DiscardHandler)
	}
	w := writer{l.With().Str("component", "torrent").Logger()}
	loud := alog.NewLogger("torrent").WithFilterLevel(alog.Info)
	loud.SetHandlers(alog.StreamHandler{W: w, Fmt: alog.LineFormatter})
	return loud, slog.New(slog.NewTextHandler(io.Writer(w), &slog.HandlerOptions{Level: slog.LevelInfo}))
}

type writer struct{ l zerolog.Logger }

func (w writer) Write(p []byte) (int, error) {
	n := len(p)
	for n > 0 && p[n-1] == '\n' {
		n--
	}
	w.l.Debug().Msg(string(p[:n]))
	return len(p), nil
}
