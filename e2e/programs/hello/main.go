// Command hello is the entry point of the images that the laboratory makes. It
// is compiled without cgo, so that it runs in an image that holds nothing else,
// and says one line by which a test knows that the container really ran.
package main

import (
	"fmt"
	"os"
	"strings"
)

func main() {
	fmt.Println(strings.Join(append([]string{"hello from a container"}, os.Args[1:]...), " "))
}
