package upstream

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"time"

	"github.com/docker/docker-credential-helpers/client"
	"github.com/docker/docker-credential-helpers/credentials"
)

const (
	// maxDockerConfig bounds the file, in bytes; a Kubernetes secret is at
	// most 1 MiB.
	maxDockerConfig = 1 << 20
	// hubKey is the name of Docker Hub in docker's configuration.
	hubKey = "https://index.docker.io/v1/"
	// tokenUser is the user name by which docker marks identity tokens.
	tokenUser = "<token>"
	// helperLimit bounds the run of a credential helper; those of clouds ask
	// a metadata service and a token service.
	helperLimit = 15 * time.Second
	// maxHelperOutput bounds what a helper says, in bytes.
	maxHelperOutput = 256 << 10
)

// dockerConfig is what this package reads of docker's config.json.
type dockerConfig struct {
	Auths       map[string]dockerAuth `json:"auths"`
	CredHelpers map[string]string     `json:"credHelpers"`
	CredsStore  string                `json:"credsStore"`
}

type dockerAuth struct {
	Auth          string `json:"auth"` // base64 of user:password
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// readDockerConfig reads the file. Errors do not repeat its content.
func readDockerConfig(path string) (dockerConfig, error) {
	f, err := os.Open(path)
	if err != nil {
		return dockerConfig{}, fmt.Errorf("read docker config: %w", err)
	}
	defer f.Close()
	p, err := io.ReadAll(io.LimitReader(f, maxDockerConfig+1))
	if err != nil {
		return dockerConfig{}, fmt.Errorf("read docker config: %w", err)
	}
	c, err := parseDockerConfig(p)
	if err != nil {
		return dockerConfig{}, fmt.Errorf("read docker config %s: %w", path, err)
	}
	return c, nil
}

func parseDockerConfig(p []byte) (dockerConfig, error) {
	var c dockerConfig
	if len(p) > maxDockerConfig {
		return c, fmt.Errorf("more than %d bytes", maxDockerConfig)
	}
	if json.Unmarshal(p, &c) != nil {
		// The error of the decoder may quote the text.
		return dockerConfig{}, errors.New("malformed JSON")
	}
	return c, nil
}

// dockerCredentials looks credentials up as docker does: a helper for the
// registry, else the store for all, else the file itself.
type dockerCredentials struct{ path string }

func (d dockerCredentials) lookup(ctx context.Context, repo Repository) (credential, error) {
	c, err := readDockerConfig(d.path)
	if err != nil {
		return credential{}, err
	}
	if helper, server := c.helper(repo.Registry); helper != "" {
		cred, err := askHelper(ctx, helper, server)
		if err != nil || cred != (credential{}) {
			return cred, err
		}
	}
	return c.find(repo)
}

// registryKeys are the names that a registry goes by in docker's
// configuration.
func registryKeys(registry string) []string {
	switch r := strings.ToLower(registry); r {
	case dockerHub, "index." + dockerHub, dockerHubEndpoint:
		return []string{"index." + dockerHub, dockerHub, dockerHubEndpoint}
	default:
		return []string{r}
	}
}

// helper returns the helper for a registry and the name to ask it for.
func (c dockerConfig) helper(registry string) (name, server string) {
	keys := registryKeys(registry)
	server = keys[0]
	if len(keys) > 1 {
		server = hubKey
	}
	for _, k := range append(keys, hubKey) {
		if k == hubKey && server != hubKey {
			continue
		}
		if h := c.CredHelpers[k]; h != "" {
			return h, server
		}
	}
	return c.CredsStore, server
}

// find returns the entry of auths whose key is the registry, or the longest
// path of it that covers the repository (host/path, as Kubernetes and podman
// know it).
func (c dockerConfig) find(repo Repository) (credential, error) {
	names := registryKeys(repo.Registry)
	best, length := "", -1
	for key := range c.Auths {
		host, path := splitAuthKey(key)
		covers := path == "" || path == repo.Name || strings.HasPrefix(repo.Name, path+"/")
		for _, n := range names {
			// Ties (the same registry written in two ways) go to the key that
			// sorts first, so that the choice does not depend on map order.
			if host == n && covers && (len(path) > length || len(path) == length && key < best) {
				best, length = key, len(path)
			}
		}
	}
	if length < 0 {
		return credential{}, nil
	}
	cred, err := c.Auths[best].credential()
	if err != nil {
		return credential{}, fmt.Errorf("docker config: entry %s: %w", quote(best), err)
	}
	return cred, nil
}

// splitAuthKey takes a key of auths apart: scheme and API version are
// history.
func splitAuthKey(key string) (host, path string) {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	host, path, _ = strings.Cut(key, "/")
	path = strings.Trim(path, "/")
	if path == "v1" || path == "v2" {
		path = ""
	}
	return strings.ToLower(host), path
}

func (a dockerAuth) credential() (credential, error) {
	cred := credential{
		username: a.Username, password: a.Password,
		identityToken: a.IdentityToken, registryToken: a.RegistryToken,
	}
	if a.Auth != "" {
		p, err := base64.StdEncoding.DecodeString(a.Auth)
		if err != nil {
			return credential{}, errors.New("auth is not base64")
		}
		user, password, ok := strings.Cut(strings.TrimRight(string(p), "\x00"), ":")
		if !ok {
			return credential{}, errors.New("auth is not user:password")
		}
		cred.username, cred.password = user, password
	}
	return cred, cred.usable()
}

// helperPattern keeps a name from the configuration from being a path.
var helperPattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$`)

// askHelper runs docker-credential-NAME. The zero credential means that it
// knows none. Errors do not repeat what it says.
func askHelper(ctx context.Context, name, server string) (credential, error) {
	if !helperPattern.MatchString(name) {
		return credential{}, fmt.Errorf("credential helper has the invalid name %s", quote(name))
	}
	ctx, cancel := context.WithTimeout(ctx, helperLimit)
	defer cancel()
	h := &helperProgram{}
	got, err := client.Get(func(args ...string) client.Program {
		h.cmd = exec.CommandContext(ctx, "docker-credential-"+name, args...)
		h.cmd.WaitDelay = time.Second // a child of the helper may keep the pipe open
		return h
	}, server)
	switch {
	case credentials.IsErrCredentialsNotFound(err):
		return credential{}, nil
	case h.err != nil:
		return credential{}, fmt.Errorf("run docker-credential-%s: %w", name, h.err)
	case err != nil:
		return credential{}, fmt.Errorf("run docker-credential-%s: unusable answer", name)
	}
	cred := credential{username: got.Username, password: got.Secret}
	if got.Username == tokenUser {
		cred = credential{identityToken: got.Secret}
	}
	return cred, cred.usable()
}

// helperProgram is a client.Program that ends with a context, as the
// library's own does not, and says nothing on our standard error.
type helperProgram struct {
	cmd *exec.Cmd
	err error
}

func (h *helperProgram) Input(in io.Reader) { h.cmd.Stdin = in }

func (h *helperProgram) Output() ([]byte, error) {
	var out limitedBuffer
	h.cmd.Stdout = &out
	h.err = h.cmd.Run()
	return out.b.Bytes(), h.err
}

// limitedBuffer refuses more than maxHelperOutput.
type limitedBuffer struct{ b bytes.Buffer }

func (l *limitedBuffer) Write(p []byte) (int, error) {
	if l.b.Len()+len(p) > maxHelperOutput {
		return 0, fmt.Errorf("more than %d bytes of output", maxHelperOutput)
	}
	return l.b.Write(p)
}
