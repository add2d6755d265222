package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/shoal-dev/shoal/swarm/peertls"
)

// certsCmd makes credentials.
type certsCmd struct {
	CA   certsCACmd   `cmd:"" name:"ca" help:"Make a certificate authority and the gossip key of a cluster."`
	Node certsNodeCmd `cmd:"" help:"Make the credentials directory of one or several nodes."`
}

type certsCACmd struct {
	Cluster string `required:"" placeholder:"ID" help:"Id of the cluster, as in 'shoal serve --cluster'. It is part of every certificate."`
	Dir     string `env:"-" default:"." placeholder:"DIR" help:"Directory for ca.crt, ca.key and gossip.key. Default: this directory."`
	Force   bool   `env:"-" help:"Replace existing files. Nodes with certificates of the old authority become strangers."`
}

// Help implements kong.HelpProvider.
func (*certsCACmd) Help() string {
	return `Keep ca.key to yourself: who has it can make nodes. Nodes need only what 'shoal certs node' writes.

Exit status: 0 on success, 1 on failure (also if files exist already), 2 for a mistake in the arguments.`
}

// Run implements the command.
func (c *certsCACmd) Run(s std) error {
	ca, err := peertls.NewCA(c.Cluster, time.Now())
	if err != nil {
		return usageError{err}
	}
	if err := peertls.WriteCA(c.Dir, ca, c.Force); err != nil {
		return withForce(err)
	}
	fmt.Fprintf(s.out, "%s: authority of cluster %s, valid until %s\n",
		c.Dir, ca.Cluster, ca.Cert.NotAfter.Format(time.DateOnly))
	return nil
}

type certsNodeCmd struct {
	Names  []string      `arg:"" optional:"" name:"name" help:"Names of the nodes, as in 'shoal serve --node'."`
	Shared bool          `env:"-" help:"Make one certificate for all nodes, in the directory 'shared', for secrets that are the same on every node. Its holder may speak for any node."`
	CA     string        `env:"-" name:"ca" default:"." placeholder:"DIR" help:"Directory of 'shoal certs ca'. Default: this directory."`
	Out    string        `env:"-" default:"." placeholder:"DIR" help:"Where each node's directory is made, named like the node. Default: this directory."`
	Life   time.Duration `env:"-" default:"8760h" placeholder:"TIME" help:"How long the certificates are valid. Default: ${default}, a year."`
	Force  bool          `env:"-" help:"Replace existing files. A running node takes them over."`
}

// Help implements kong.HelpProvider.
func (*certsNodeCmd) Help() string {
	return `Each directory is what 'shoal serve --certs-dir' wants. To renew, run the same with --force and copy the result over the node's directory: it takes over the files without a restart.

Exit status: 0 on success, 1 on failure (also if files exist already), 2 for a mistake in the arguments.`
}

// sharedDir is the directory of a certificate for all nodes, whose identity
// would make a poor file name.
const sharedDir = "shared"

// Run implements the command.
func (c *certsNodeCmd) Run(s std) error {
	if c.Shared == (len(c.Names) > 0) {
		return usageError{errors.New("give the names of nodes, or --shared")}
	}
	if c.Life <= 0 {
		return usageError{fmt.Errorf("--life: %s: must be positive", c.Life)}
	}
	ca, err := peertls.LoadCA(c.CA)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: make it with 'shoal certs ca', or say with --ca where it is", err)
		}
		return err
	}
	names := c.Names
	if c.Shared {
		names = []string{peertls.AnyNode}
	}
	for _, name := range names {
		cert, err := ca.Issue(name, time.Now(), c.Life)
		if err != nil {
			return usageError{err}
		}
		dir := filepath.Join(c.Out, name)
		if c.Shared {
			dir = filepath.Join(c.Out, sharedDir)
		}
		if err := peertls.WriteNode(dir, cert, c.Force); err != nil {
			return withForce(err)
		}
		fmt.Fprintf(s.out, "%s: node %s of cluster %s, valid until %s\n",
			dir, name, ca.Cluster, cert.Cert.NotAfter.Format(time.DateOnly))
	}
	return nil
}

// withForce tells how to go on when files are in the way.
func withForce(err error) error {
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: replace it with --force", err)
	}
	return err
}
