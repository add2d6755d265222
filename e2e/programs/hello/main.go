// Command hello is the entry point of the images that the laboratory makes. It
// is compiled without cgo, so that it runs in an image that holds nothing else,
// and says one line by which a test knows that the container really ran. With
// "stay" as its first argument it stays until it is told to stop, for pods; with
// "reach" it says what comes of speaking to each of the following addresses, such
// as tcp/10.0.0.1:80.
package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	fmt.Println(strings.Join(append([]string{"hello from a container"}, os.Args[1:]...), " "))
	if len(os.Args) < 2 {
		return
	}
	switch os.Args[1] {
	case "stay":
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
		<-stop
	case "reach":
		var all sync.WaitGroup
		for _, target := range os.Args[2:] {
			all.Go(func() { fmt.Println(target, reach(target)) })
		}
		all.Wait()
	}
}

// patience is long beside any answer within a laboratory.
const patience = time.Second

// reach is "reached", "refused", "unanswered" or an error. UDP that nobody refuses is
// unanswered unless the other side has something to say to one odd byte.
func reach(target string) string {
	network, address, _ := strings.Cut(target, "/")
	conn, err := net.DialTimeout(network, address, patience)
	if err == nil {
		defer conn.Close()
		if network == "tcp" {
			return "reached"
		}
		_ = conn.SetDeadline(time.Now().Add(patience)) // of an open connection
		if _, err = conn.Write([]byte{0}); err == nil {
			_, err = conn.Read(make([]byte, 1))
		}
	}
	var timeout net.Error
	switch {
	case err == nil:
		return "reached"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "unanswered"
	default:
		return err.Error()
	}
}
