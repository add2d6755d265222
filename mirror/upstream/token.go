package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	// maxTokenBody bounds the answer of a token service, in bytes; some send
	// the token twice.
	maxTokenBody = 4 * maxToken
	// clientID is what OAuth2 asks clients to name themselves with.
	clientID = "shoal"
)

// token asks the token service that a Bearer challenge names, as the
// distribution project specifies: GET with Basic credentials or none, or POST
// where the credential is an identity token.
func (c *Client) token(ctx context.Context, repo Repository, demand challenge, cred credential) (string, time.Duration, error) {
	k := authTask(repo)
	realm, err := c.realm(c.Endpoint(repo.Registry), demand.params["realm"])
	if err != nil {
		return "", 0, k.fail(ErrInvalid, err)
	}
	q := url.Values{}
	if s := demand.params["service"]; s != "" {
		q.Set("service", s)
	}
	// Registries know best how they call a repository: behind a front, its
	// name differs. Whatever they ask for is granted for them only.
	scope := demand.params["scope"]
	if scope == "" {
		scope = "repository:" + repo.Name + ":pull"
	}
	q.Set("scope", scope)

	req := (&http.Request{Method: http.MethodGet, Header: http.Header{}}).WithContext(ctx)
	if cred.identityToken != "" {
		q.Set("grant_type", "refresh_token")
		q.Set("client_id", clientID)
		q.Set("refresh_token", cred.identityToken)
		form := q.Encode()
		req.Method = http.MethodPost
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Body, req.ContentLength = io.NopCloser(strings.NewReader(form)), int64(len(form))
	} else {
		for name, values := range realm.Query() {
			if !q.Has(name) {
				q[name] = values
			}
		}
		if cred.username != "" || cred.password != "" {
			q.Set("account", cred.username)
			req.Header.Set("Authorization", cred.basic())
		}
		realm.RawQuery = q.Encode()
	}
	req.URL, req.Host = realm, realm.Host
	req.Proto, req.ProtoMajor, req.ProtoMinor = "HTTP/1.1", 1, 1

	resp, err := c.roundTrip(k, req)
	if err != nil {
		return "", 0, k.broken(ctx, err)
	}
	if resp.StatusCode != http.StatusOK {
		// Redirects too: they would lead credentials astray.
		return "", 0, k.status(resp, c.cfg.Now())
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxTokenBody+1))
	if err != nil {
		return "", 0, k.broken(ctx, err)
	}
	token, life, err := parseToken(body)
	if err != nil {
		return "", 0, k.fail(ErrInvalid, err)
	}
	return token, life, nil
}

// realm checks where a challenge sends this node for a token.
func (c *Client) realm(registry *url.URL, realm string) (*url.URL, error) {
	u, err := url.Parse(realm)
	if err != nil || !validHost(strings.ToLower(u.Host)) || u.User != nil {
		return nil, errors.New("challenge without a usable realm")
	}
	if err := c.schemeAllowed(registry, u); err != nil {
		return nil, fmt.Errorf("realm %s: %w", quote(u.Host), err)
	}
	u.Fragment = ""
	return u, nil
}

// parseToken reads the answer of a token service. Errors do not repeat it.
func parseToken(body []byte) (token string, life time.Duration, err error) {
	if len(body) > maxTokenBody {
		return "", 0, fmt.Errorf("token service answers more than %d bytes", maxTokenBody)
	}
	var t struct {
		Token       string      `json:"token"`
		AccessToken string      `json:"access_token"`
		ExpiresIn   json.Number `json:"expires_in"`
	}
	if json.Unmarshal(body, &t) != nil {
		return "", 0, errors.New("token service answers malformed JSON")
	}
	if token = t.Token; token == "" {
		token = t.AccessToken
	}
	if !validToken(token) {
		return "", 0, errors.New("token service answers no usable token")
	}
	life = defaultTokenLife
	if s, err := t.ExpiresIn.Float64(); err == nil && s > 0 {
		life = time.Duration(min(s, maxTokenLife.Seconds()) * float64(time.Second))
	}
	return token, life, nil
}
