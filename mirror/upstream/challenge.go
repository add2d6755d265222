package upstream

import (
	"strings"
)

// challenge is one challenge of a WWW-Authenticate header (RFC 9110, 11.6.1).
// Scheme and parameter names are in lower case.
type challenge struct {
	scheme string
	params map[string]string
}

// Bounds on challenges; real ones have one or two, of up to four parameters.
const (
	maxChallenges = 8
	maxParams     = 16
	maxParam      = 2 << 10 // bytes of a value
)

// parseChallenges reads what registries demand. Of a malformed header it
// returns the challenges before the fault.
func parseChallenges(headers []string) []challenge {
	var all []challenge
	for _, h := range headers {
		p := challengeParser{rest: h}
		for len(all) < maxChallenges {
			c, ok := p.next()
			if !ok {
				break
			}
			all = append(all, c)
		}
	}
	return all
}

// find returns the first challenge of a scheme.
func find(cs []challenge, scheme string) (challenge, bool) {
	for _, c := range cs {
		if c.scheme == scheme {
			return c, true
		}
	}
	return challenge{}, false
}

// challengeParser consumes one header value.
type challengeParser struct{ rest string }

// next parses one challenge: a scheme, and then parameters until something
// that is no name=value, which is the next scheme.
func (p *challengeParser) next() (challenge, bool) {
	p.skip(" \t,")
	scheme := p.token()
	if scheme == "" || (p.rest != "" && !strings.ContainsAny(p.rest[:1], " \t,")) {
		p.rest = ""
		return challenge{}, false
	}
	c := challenge{scheme: strings.ToLower(scheme), params: map[string]string{}}
	for {
		p.skip(" \t,")
		mark := p.rest
		name := strings.ToLower(p.token())
		p.skip(" \t")
		if name == "" || !strings.HasPrefix(p.rest, "=") {
			p.rest = mark
			return c, true
		}
		p.rest = p.rest[1:]
		p.skip(" \t")
		value, ok := p.value()
		if !ok || len(value) > maxParam || len(c.params) >= maxParams {
			p.rest = ""
			return challenge{}, false
		}
		if _, twice := c.params[name]; twice {
			p.rest = ""
			return challenge{}, false
		}
		c.params[name] = value
	}
}

func (p *challengeParser) skip(set string) { p.rest = strings.TrimLeft(p.rest, set) }

// token consumes a token (RFC 9110, 5.6.2); it may be empty.
func (p *challengeParser) token() string {
	i := 0
	for i < len(p.rest) && isTokenChar(p.rest[i]) {
		i++
	}
	t := p.rest[:i]
	p.rest = p.rest[i:]
	return t
}

// value consumes a token or a quoted string (RFC 9110, 5.6.4). Values that
// are neither (the token68 form of other schemes) are a fault.
func (p *challengeParser) value() (string, bool) {
	if !strings.HasPrefix(p.rest, `"`) {
		t := p.token()
		return t, t != ""
	}
	var b strings.Builder
	for i := 1; i < len(p.rest); i++ {
		switch ch := p.rest[i]; {
		case ch == '"':
			p.rest = p.rest[i+1:]
			return b.String(), true
		case ch == '\\' && i+1 < len(p.rest):
			i++
			b.WriteByte(p.rest[i])
		default:
			b.WriteByte(ch)
		}
	}
	return "", false
}

func isTokenChar(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	return strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}
