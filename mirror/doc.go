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
// Who names the end of a range reads a part for its own sake, as lazy snapshotters
// do; then that part is brought in and not the blob. Who resumes a pull does not.
//
// # What is not served is a 404
//
// containerd turns to its next host, at last the registry itself, upon a 404,
// and shows the user that host's error. So every refusal and every failure
// before the first byte is a 404 with an error body of the specification,
// whose detail names the reason, as does shoal_mirror_fallbacks_total. That
// holds for malformed names too: upstream may know better. The exceptions are
// the Range answers above, 405 for methods that write, what upstream answers
// to a caller whom it refuses: 401 with its challenges, or 403; and 503 for a part of
// a blob that cannot be had now.
//
// A failure in mid-body closes the connection before the promised
// Content-Length, with FIN. containerd then asks for the rest; that request is
// a miss too, for [cooldownFor], and the registry completes the blob; but not for
// parts, since a lazy snapshotter has no next host for a layer that it has mounted. An
// aborting RST would fail the pull, so no connection is ever reset on purpose.
//
// # Who may have what
//
// Upstream must have shown two things, whatever is in the cache: that it lets
// the caller pull from the repository ([Config].GrantTTL is how long that is
// believed), and that the digest belongs to the repository, by a HEAD or by a
// manifest of it that names the digest. Who the caller is, [Config].Authorization
// says for each registry:
//
//   - [AuthorizeUpstream]: whoever the Authorization header says, or else nobody
//     in particular. The header goes to that registry as it is, with a HEAD for
//     the permission and with the ranges that the caller's own download fetches.
//     A refusal is passed on with upstream's challenges, so that the client comes
//     back with what its pod's pull secret gets it. Decisions are kept by a keyed
//     hash of credential, registry and repository; the credential itself lives as
//     long as the request, and as the download that it started or joined.
//   - [AuthorizeNode]: the node, with its own credentials. Requests with others
//     are left to the registry, and a 401 or 403 upstream is a 404 here.
//   - [AuthorizeNone]: the same, except that upstream is not asked whether the
//     node may pull.
//
// While upstream does not answer, [Config].Outage says what becomes of those
// whom it let in longer ago; unless its last word was no, which stands. Callers
// without credentials also go by the cluster's memory of what others of their
// kind were given: references that they resolve are kept by the swarm as tags
// are, those of other callers apart from them. What is served without upstream's
// fresh word is marked offline in the log and counted in
// shoal_mirror_degraded_total. A tag's last digest is served for
// [Config].OutageGrace, with a Warning header.
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
