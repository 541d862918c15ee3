// Command warren is the node daemon and its command line; see `warren --help`.
package main

import (
	"os"

	"github.com/warren-net/warren/internal/cli"
)

func main() { os.Exit(cli.Main()) }
