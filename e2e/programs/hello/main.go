// Command hello is the entry point of the images that the laboratory makes. It
// is compiled without cgo, so that it runs in an image that holds nothing else,
// and says one line by which a test knows that the container really ran. With
// "stay" as its first argument it stays until it is told to stop, for pods.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	fmt.Println(strings.Join(append([]string{"hello from a container"}, os.Args[1:]...), " "))
	if len(os.Args) > 1 && os.Args[1] == "stay" {
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
		<-stop
	}
}
