// Package upstream is the client side of the origin registries: it resolves
// tags, reads manifests, and streams byte ranges of blobs, with the
// credentials of this node, with none, or with somebody else's.
//
// # Use
//
// One [Client] serves all registries. [Client.Head] and [Client.Manifest]
// answer what a tag or digest is; [Client.Blob] returns a [Blob], which is a
// [github.com/shoal-dev/shoal/swarm.Origin]: its Open streams exactly the
// range that was asked for, or fails. [Client.Anonymous] and [Client.As] make
// clients that speak in other names than the node's. Failures are an [*Error]; its kind is
// tested with errors.Is against [ErrDenied], [ErrRateLimited], [ErrInvalid]
// and the sentinels of package swarm.
//
// # Persistence
//
// 408, 429, 5xx, refused and broken connections are tried again, with
// jittered exponential back-off and heed to Retry-After, as [Retry] says. A
// registry that asks for a longer pause than Retry.MaxWait, or than the
// context allows, is not waited for: the error says RetryAfter, and whoever
// called has other sources. A body that breaks off, or falls silent for
// Timeouts.Idle, is resumed at the byte where it broke; attempts are counted
// anew after real progress.
//
// A blob's bytes are not verified here: ranges cannot be, and the swarm
// verifies every blob whole. What can be checked is: Content-Range must name
// the range that was asked for and the size that the manifest names, lengths
// must agree, no content coding. A registry that ignores Range answers 200
// where 206 was due, and Open fails with swarm.ErrNoRange, unless the whole
// blob was asked for.
//
// # Connections
//
// HTTP/1.1 only, because ranges of one blob are fetched in parallel: with
// HTTP/2 they would share one TCP connection, one congestion window and often
// one server-side rate limit. Config.Connections bounds blob streams per
// registry; manifests never wait for blobs.
//
// Registries that keep blobs elsewhere redirect to signed URLs. The target of
// a redirect is reused for a minute within one [Blob], which spares a round
// trip per range; should it stop working, the registry is asked again.
//
// # Trust
//
// What a registry answers is hostile input: headers, error bodies, token
// answers and manifests are bounded, redirects are few, challenges are parsed
// strictly. What keeps a registry, or who impersonates it, from abusing this
// node:
//
//   - Plain http is spoken to hosts in Config.Insecure only. https never
//     leads to http, by redirect or by realm.
//   - Credentials are looked up by the registry's name and sent to two places:
//     the registry itself (same scheme, host and port), and the realm that
//     its own challenge names, over https (over http only for a registry that
//     is itself insecure, and there to itself or to another host in
//     Config.Insecure). A redirect elsewhere travels without them, also if it
//     comes back. Token services may not redirect.
//   - Somebody else's Authorization header (As) goes to one registry, as it is,
//     and to no token service. Its challenges, and those that were met without
//     credentials, come back in [Error].Challenges for whoever has the password.
//     They are written anew from what was understood: Bearer and Basic only, and
//     with realms under the rules here, with addresses checked at that moment,
//     since the client will resolve the name again.
//   - Redirects and realms could aim at services that only this node can
//     reach. Loopback, link-local (cloud metadata), unspecified and multicast
//     addresses are refused after name resolution, at the time of dialing,
//     unless the operator named the host (Config.Insecure, CAs or Local).
//     Private networks are allowed, since object stores and token services
//     live there; such a request carries no credentials and no body, and what
//     it returns is used only if its digest is right. With a proxy (Config.Proxy)
//     the choice of addresses is the proxy's.
//   - Errors and logs name hosts and repositories, never tokens, passwords or
//     the query of a URL, where signatures are. Text from a registry is not
//     repeated, except an error code of the OCI form.
//
// Which registries are spoken to at all is the caller's decision.
package upstream
