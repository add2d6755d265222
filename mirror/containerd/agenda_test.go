package containerd

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

var (
	epoch    = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	testPace = pace{
		settle: 100 * time.Millisecond, retries: 2, maxChecks: 3,
		followUp: 5 * time.Second, minGap: time.Second, reconcile: time.Minute,
	}
)

// TestAgenda plays hints and writes down what is done when.
func TestAgenda(t *testing.T) {
	t.Parallel()
	type done struct {
		At     time.Duration
		Checks int
		Walk   bool
	}
	ms := time.Millisecond
	// unnamed lets again play a file without metadata.
	type player struct {
		*agenda
		unknown bool
	}
	for _, tc := range []struct {
		name  string
		hints map[time.Duration]func(*player, time.Time)
		until time.Duration
		want  []done
	}{
		{
			name: "a walk at once, then every minute", until: 130 * time.Second,
			want: []done{{0, 0, true}, {60 * time.Second, 0, true}, {120 * time.Second, 0, true}},
		},
		{
			name: "hints settle into one batch, from the first on", until: 10 * time.Second,
			hints: map[time.Duration]func(*player, time.Time){
				2000 * ms: func(p *player, now time.Time) { p.look(key{1}, "a", false, now) },
				2050 * ms: func(p *player, now time.Time) { p.look(key{1}, "", true, now); p.look(key{2}, "", false, now) },
			},
			want: []done{{0, 0, true}, {2100 * ms, 1, false}, {2150 * ms, 1, false}},
		},
		{
			name: "too many digests become a walk", until: 10 * time.Second,
			hints: map[time.Duration]func(*player, time.Time){
				2000 * ms: func(p *player, now time.Time) {
					for i := range 10 {
						p.look(key{byte(i)}, "", false, now)
					}
				},
			},
			want: []done{{0, 0, true}, {2100 * ms, 3, true}},
		},
		{
			name: "walks keep their distance", until: 4 * time.Second,
			hints: map[time.Duration]func(*player, time.Time){
				10 * ms:   func(p *player, now time.Time) { p.compare(now) },
				500 * ms:  func(p *player, now time.Time) { p.compare(now) },
				1500 * ms: func(p *player, now time.Time) { p.compare(now) },
			},
			want: []done{{0, 0, true}, {1000 * ms, 0, true}, {2000 * ms, 0, true}},
		},
		{
			name: "a collection is looked after again, once, after the last", until: 20 * time.Second,
			hints: map[time.Duration]func(*player, time.Time){
				2000 * ms: func(p *player, now time.Time) { p.collected(now) },
				4000 * ms: func(p *player, now time.Time) { p.collected(now) },
			},
			want: []done{{0, 0, true}, {2100 * ms, 0, true}, {4100 * ms, 0, true}, {9000 * ms, 0, true}},
		},
		{
			name: "a file without metadata is asked for again, slower each time", until: 20 * time.Second,
			hints: map[time.Duration]func(*player, time.Time){
				2000 * ms: func(p *player, now time.Time) { p.unknown = true; p.look(key{1}, "", false, now) },
			},
			want: []done{{0, 0, true}, {2100 * ms, 1, false}, {2300 * ms, 1, false}, {2700 * ms, 1, false}},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p := &player{agenda: newAgenda(testPace, epoch)}
			var got []done
			for at := time.Duration(0); at <= tc.until; at += ms {
				now := epoch.Add(at)
				if h := tc.hints[at]; h != nil {
					h(p, now)
				}
				if p.next().After(now) {
					continue
				}
				checks, walk := p.due(now)
				if walk {
					p.walked(now, now)
				}
				for k, c := range checks {
					if p.unknown {
						p.again(k, c, now)
					}
				}
				got = append(got, done{at, len(checks), walk})
			}
			if diff := cmp.Diff(tc.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A slow walk earns a long pause.
func TestSlowWalks(t *testing.T) {
	t.Parallel()
	a := newAgenda(testPace, epoch)
	end := epoch.Add(3 * time.Second)
	a.walked(epoch, end)
	a.compare(end)
	if got, want := a.next(), end.Add(time.Minute); !got.Equal(want) {
		t.Errorf("next at %v, want %v", got.Sub(end), want.Sub(end))
	}
}

// Whatever comes, something is always due in finite time, next tells when, and
// nothing that was asked for is forgotten.
func TestAgendaProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a := newAgenda(testPace, epoch)
		now := epoch
		wanted := map[key]bool{} // not asked for since its hint
		var lastWalk time.Time
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 3000).Draw(t, "ms")) * time.Millisecond)
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0:
				k := key{byte(rapid.IntRange(0, 9).Draw(t, "key"))}
				a.look(k, "", false, now)
				wanted[k] = true
			case 1:
				a.compare(now)
			case 2:
				a.collected(now)
			default:
				due := !a.next().After(now)
				checks, walk := a.due(now)
				if due != (walk || len(checks) > 0) {
					t.Fatalf("next says due=%v; %d checks, walk %v", due, len(checks), walk)
				}
				for k := range checks {
					delete(wanted, k)
				}
				if walk {
					if !lastWalk.IsZero() && now.Sub(lastWalk) < testPace.minGap {
						t.Fatalf("walks %v apart", now.Sub(lastWalk))
					}
					clear(wanted)
					a.walked(now, now)
					lastWalk = now
				}
			}
			if len(a.checks) > testPace.maxChecks {
				t.Fatalf("%d checks", len(a.checks))
			}
			if wait := a.next().Sub(now); wait > testPace.reconcile {
				t.Fatalf("next in %v", wait)
			}
			if len(wanted) > 0 && a.next().Sub(now) > testPace.settle+testPace.minGap {
				t.Fatalf("%d hints wait, next in %v", len(wanted), a.next().Sub(now))
			}
		}
	})
}
