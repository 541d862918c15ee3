// Command server is what the pods of the runtime's tests run. Over HTTP it says who asked, asks another pod in turn,
// and sends and takes bytes; over UDP it says who asked.
package main

import (
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"
)

// address is the port of both protocols, on every address of both families.
const address = ":8080"

// wait bounds a question to another pod.
const wait = 5 * time.Second

func main() {
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}

func serve() error {
	udp, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	failed := make(chan error, 2)
	go func() { failed <- answerUDP(udp) }()
	identity := rand.Text()
	http.HandleFunc("/source", func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.RemoteAddr) })
	http.HandleFunc("/identity", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, identity) })
	http.HandleFunc("/ask", ask)
	http.HandleFunc("/send", send)
	http.HandleFunc("/take", take)
	go func() { failed <- (&http.Server{Addr: address, ReadHeaderTimeout: wait}).ListenAndServe() }()
	return <-failed
}

func answerUDP(conn net.PacketConn) error {
	buf := make([]byte, 64)
	for {
		_, from, err := conn.ReadFrom(buf)
		if err != nil {
			return err
		}
		// Who does not hear the answer asks again or fails.
		_, _ = conn.WriteTo([]byte(from.String()), from)
	}
}

// ask asks /source of another server, named by its address and port in "to", by the protocol in "by".
func ask(w http.ResponseWriter, r *http.Request) {
	to := r.FormValue("to")
	answer, err := func() (string, error) {
		if r.FormValue("by") == "udp" {
			return askUDP(to)
		}
		return askTCP(to)
	}()
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	_, _ = io.WriteString(w, answer)
}

func askTCP(to string) (string, error) {
	// A connection of its own per question, as the network is what is being asked about.
	client := http.Client{Timeout: wait, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + to + "/source")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

func askUDP(to string) (string, error) {
	conn, err := net.Dial("udp", to)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(wait)); err != nil {
		return "", err
	}
	if _, err := conn.Write([]byte("who am I?")); err != nil {
		return "", err
	}
	buf := make([]byte, 64)
	n, err := conn.Read(buf)
	return string(buf[:n]), err
}

// send writes as many bytes as "bytes" says.
func send(w http.ResponseWriter, r *http.Request) {
	left, err := strconv.ParseInt(r.FormValue("bytes"), 10, 64)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	for block := make([]byte, 64<<10); left > 0; left -= int64(len(block)) {
		if left < int64(len(block)) {
			block = block[:left]
		}
		if _, err := w.Write(block); err != nil {
			return
		}
	}
}

// take reads all that comes and answers how many bytes it was.
func take(w http.ResponseWriter, r *http.Request) {
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	_, _ = fmt.Fprint(w, n)
}
