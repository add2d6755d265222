// Package mirror serves the pull half of the OCI distribution API to the
// containerd of its own node, and decides for each request whether it is
// answered and from where: this node, the swarm, or the registry upstream.
//
// # The API
//
//	GET|HEAD /v2/                                       the version probe
//	GET|HEAD /v2/<name>/manifests/<tag|digest>?ns=<registry>
//	GET|HEAD /v2/<name>/blobs/<digest>?ns=<registry>
//
// The same below /registry/<host>, for clients that send no ns parameter.
// Digests are sha256. A GET of a blob may carry a Range, which becomes a 206 or
// a 416; ranges that join into one count as one, others get 400, because a
// lazy snapshotter wants anything but the whole blob in return. A malformed
// Range is ignored, as RFC 9110 allows.
//
// # What is not served is a 404
//
// containerd turns to its next host, at last the registry itself, upon a 404,
// and shows the user that host's error. So every refusal and every failure
// before the first byte is a 404 with an error body of the specification,
// whose detail names the reason, as does shoal_mirror_fallbacks_total. That
// holds for malformed names too: upstream may know better. The exceptions are
// the Range answers above, and 405 for methods that write.
//
// A failure in mid-body closes the connection before the promised
// Content-Length, with FIN. containerd then asks for the rest; that request is
// a miss too, for [cooldownFor], and the registry completes the blob. An
// aborting RST would fail the pull, so no connection is ever reset on purpose.
//
// # Who may have what
//
// A request with an Authorization header is left to the registry. All others
// are served in the name of the node: upstream must have shown, with the
// credentials of the node or none, that it lets this node pull from the
// repository ([Config].GrantTTL is how long that is believed), and that the
// digest belongs to the repository, by a HEAD or by a manifest of it that names
// the digest. A 401 or 403 upstream is a 404 here, whatever is in the cache.
// While upstream does not answer, content that the cluster has is served all
// the same, marked offline in the log and counted in
// shoal_mirror_degraded_total, unless upstream's last word was no.
//
// ns is hostile: it selects among the registries that are configured, is never
// an address or localhost unless configured as such, and becomes a metric
// label only if configured by name or served from, and then at most
// [labelledRegistries] times.
//
// # Every wait has a bound
//
//	a question to upstream             Config.CheckTimeout, and none while it is down
//	a tag's resolution in the cluster  resolveTimeout
//	a manifest                         manifestTimeout
//	is it here, who has it             lookTimeout
//	a blob's first byte                Config.FirstByteTimeout, then the header goes out
//	a download without progress        Config.StallTimeout, then the body is cut
//	a client that does not read        Config.ClientTimeout
//
// A registry that did not answer within its bound is not waited for again in
// the next [downFor]: requests find out at once, while one of them asks in the
// background whether it is back.
package mirror
