// A relay as an engineer would write it in an afternoon: nats.go's Consume on one durable consumer, one WebSocket, and
// an acknowledgement for each update when its reply has come. Replies come in the order of the updates. It keeps no
// order when an update comes again, tries nothing again, and has no dead letters.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/coder/websocket"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// How many unanswered updates the Facilitator allows a connection.
const window = 32

type reply struct {
	Status string `json:"status"`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := relay(ctx, stop); err != nil {
		log.Fatal(err)
	}
}

func relay(ctx context.Context, stop context.CancelFunc) error {
	socket, _, err := websocket.Dial(ctx, os.Getenv("BENCH_FACILITATOR_URL"), nil)
	if err != nil {
		return err
	}
	defer socket.CloseNow()
	if err := signIn(ctx, socket); err != nil {
		return err
	}
	consumer, closeNATS, err := openConsumer(ctx)
	if err != nil {
		return err
	}
	defer closeNATS()

	waiting := make(chan jetstream.Msg, window)
	consuming, err := consumer.Consume(func(update jetstream.Msg) {
		select {
		case waiting <- update:
		case <-ctx.Done():
			return
		}
		if err := socket.Write(ctx, websocket.MessageText, update.Data()); err != nil {
			stop()
		}
	})
	if err != nil {
		return err
	}
	defer consuming.Stop()
	fmt.Println(`{"ready": true}`)
	return acknowledge(ctx, socket, waiting)
}

func signIn(ctx context.Context, socket *websocket.Conn) error {
	if err := socket.Write(ctx, websocket.MessageText, []byte("{}")); err != nil {
		return err
	}
	_, _, err := socket.Read(ctx)
	return err
}

func openConsumer(ctx context.Context) (jetstream.Consumer, func(), error) {
	nc, err := nats.Connect(os.Getenv("BENCH_NATS_URL"))
	if err != nil {
		return nil, nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, nil, err
	}
	consumer, err := js.CreateOrUpdateConsumer(ctx, "JOB_STATUS", jetstream.ConsumerConfig{
		Durable:       "go",
		FilterSubject: "job.status.*.*",
		AckPolicy:     jetstream.AckExplicitPolicy,
	})
	return consumer, nc.Close, err
}

// acknowledge reads replies until the process is stopped.
func acknowledge(ctx context.Context, socket *websocket.Conn, waiting <-chan jetstream.Msg) error {
	for {
		_, text, err := socket.Read(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		var answer reply
		if err := json.Unmarshal(text, &answer); err != nil || answer.Status != "success" {
			return fmt.Errorf("the sink refused an update: %s", text)
		}
		if err := (<-waiting).Ack(); err != nil {
			return err
		}
	}
}
