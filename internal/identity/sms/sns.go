package sms

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sns"
	"github.com/aws/aws-sdk-go-v2/service/sns/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"strongroom/internal/secret"
)

// SNSOptions configure an SNS.
type SNSOptions struct {
	Region string
	// Key and Secret are an access key's id and its secret. Without Key they come from where the AWS
	// SDK looks: the environment, a role of the host or of the pod.
	Key    string
	Secret secret.Value
	// From is the sender's id, 3 to 11 letters and digits, for countries that show one; may be empty.
	From string
	// URL is the address of the service; "" means that of the region.
	URL     string
	Timeout time.Duration  // of one request; 0 means 5 s
	Roots   *x509.CertPool // nil means the host's
}

// SNS is a Sender over Amazon SNS, whose requests the SDK signs (Signature Version 4). SNS reports
// deliveries to CloudWatch only, so it is no Reporter.
type SNS struct {
	from   string
	client *sns.Client
}

// NewSNS returns an SNS, or says what is wrong with its options.
func NewSNS(ctx context.Context, o SNSOptions) (*SNS, error) {
	if o.Region == "" {
		return nil, errors.New("sms: SNS needs a region, for example eu-central-1")
	}
	load := []func(*config.LoadOptions) error{
		config.WithRegion(o.Region),
		// The outbox tries again, and knows what else waits.
		config.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }),
	}
	if o.Key != "" {
		load = append(load, config.WithCredentialsProvider(credentials.NewStaticCredentialsProvider(o.Key, string(o.Secret.Reveal()), "")))
	}
	c, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return nil, fmt.Errorf("sms: settings of AWS: %w", err)
	}
	client := sns.NewFromConfig(c, func(so *sns.Options) {
		so.HTTPClient = HTTPClient(o.Timeout, o.Roots)
		if o.URL != "" {
			so.BaseEndpoint = &o.URL
		}
	})
	return &SNS{from: o.From, client: client}, nil
}

// Send implements Sender.
func (s *SNS) Send(ctx context.Context, m Message) error {
	text := func(v string) types.MessageAttributeValue {
		return types.MessageAttributeValue{DataType: aws.String("String"), StringValue: &v}
	}
	in := &sns.PublishInput{PhoneNumber: &m.To, Message: &m.Text, MessageAttributes: map[string]types.MessageAttributeValue{
		"AWS.SNS.SMS.SMSType": text("Transactional"),
	}}
	if s.from != "" {
		in.MessageAttributes["AWS.SNS.SMS.SenderID"] = text(s.from)
	}
	_, err := s.client.Publish(ctx, in)
	if err == nil {
		return nil
	}
	// What the SDK says may quote the request, so only the code and the status are passed on.
	fault, ok := errors.AsType[smithy.APIError](err)
	if !ok {
		return fmt.Errorf("sms: asking SNS: %w", cause(err))
	}
	status := http.StatusInternalServerError
	if answer, ok := errors.AsType[*smithyhttp.ResponseError](err); ok {
		status = answer.HTTPStatusCode()
	}
	code := receiptCode(fault.ErrorCode())
	switch code {
	case "Throttling", "Throttled", "ThrottlingException", "ThrottledException":
		return fmt.Errorf("%w (%s)", ErrLater, code)
	case "InvalidParameter", "InvalidParameterValue", "ParameterValueInvalid", "OptedOut", "ValidationException":
		return fmt.Errorf("%w (%s)", ErrRejected, code)
	}
	return fmt.Errorf("sms: SNS answered with status %d, %s", status, code)
}

// cause is the innermost error, which says what happened and not with what.
func cause(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}
