package kubernetes

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math/rand"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/mutating"
	webhookutil "k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"
)

// printed is what `mirror webhook manifests` prints, as far as the API server and the server need it.
type printed struct {
	configuration *admissionv1.MutatingWebhookConfiguration
	secret        *corev1.Secret
}

func manifests(t testing.TB, options ...string) (printed printed) {
	t.Helper()
	arguments := []string{"mirror", "webhook", "manifests", "--image=registry.example/webhook:1", "--bucket=plans"}
	for _, document := range split(t, ecrTransfer(t, append(arguments, options...)...)) {
		var kind metav1.TypeMeta
		must(t, yaml.Unmarshal(document, &kind))
		switch kind.Kind {
		case "MutatingWebhookConfiguration":
			printed.configuration = strict[admissionv1.MutatingWebhookConfiguration](t, document)
		case "Secret":
			printed.secret = strict[corev1.Secret](t, document)
		}
	}
	return printed
}

// endpoint is where the API server finds the Service of the webhook.
type endpoint struct {
	t       testing.TB
	address string
}

func (e *endpoint) ResolveEndpoint(namespace, name string, port int32) (*url.URL, error) {
	if name != "ecr-transfer-webhook" || namespace != "ecr-transfer" || port != 443 {
		e.t.Errorf("the API server looks for %s.%s:%d", name, namespace, port)
	}
	return &url.URL{Scheme: "https", Host: e.address}, nil
}

// anonymous is an API server without a login to webhooks.
type anonymous struct{}

func (anonymous) ClientConfigFor(string) (*rest.Config, error) { return &rest.Config{}, nil }
func (anonymous) ClientConfigForService(string, string, int) (*rest.Config, error) {
	return &rest.Config{}, nil
}

// serve starts `mirror webhook serve`, and returns its address when it has its inventory.
func serve(t testing.TB, secret *corev1.Secret, inventory string, options ...string) (*exec.Cmd, string) {
	t.Helper()
	directory := t.TempDir()
	for name, content := range secret.Data {
		must(t, os.WriteFile(filepath.Join(directory, name), content, 0o600))
	}
	arguments := []string{"mirror", "webhook", "serve", "--inventory", inventory, "--port=0", "--metrics-port=0", "--grace=0",
		"--certificate", filepath.Join(directory, "tls.crt"), "--key", filepath.Join(directory, "tls.key")}
	server := exec.Command(os.Getenv("ECR_TRANSFER"), append(arguments, options...)...)
	log, err := server.StderrPipe()
	must(t, err)
	must(t, server.Start())
	t.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })
	lines := bufio.NewScanner(log)
	port := 0
	for lines.Scan() {
		var line struct {
			Message string
			Port    int
		}
		must(t, json.Unmarshal(lines.Bytes(), &line))
		switch line.Message {
		case "Listening":
			port = line.Port
		case "A new inventory is in use":
			go func() {
				for lines.Scan() {
				}
			}()
			return server, fmt.Sprint("127.0.0.1:", port)
		}
	}
	t.Fatal("the server ended")
	return nil, ""
}

// calling is a cluster whose API server calls the webhook at an address.
func calling(t testing.TB, address string, configuration *admissionv1.MutatingWebhookConfiguration, more ...runtime.Object) *cluster {
	t.Helper()
	plugin, err := mutating.NewMutatingWebhook(nil)
	must(t, err)
	plugin.SetServiceResolver(&endpoint{t, address})
	plugin.SetAuthenticationInfoResolverWrapper(func(webhookutil.AuthenticationInfoResolver) webhookutil.AuthenticationInfoResolver {
		return anonymous{}
	})
	plugins := map[string]admission.Interface{
		mutating.PluginName: plugin,
		"injector":          injector{admission.NewHandler(admission.Create)},
	}
	return newCluster(t, append([]runtime.Object{configuration}, more...), plugins)
}

// installed is a cluster with the webhook, which works already.
func installed(t testing.TB, inventory string, more ...runtime.Object) *cluster {
	t.Helper()
	printed := manifests(t)
	_, address := serve(t, printed.secret, inventory)
	cluster := calling(t, address, printed.configuration, more...)
	cluster.wait(t, canary)
	return cluster
}

const nginx = mirror + "/m/hub/nginx:1.27"

func TestTheWebhookChangesNewPods(t *testing.T) {
	cluster := installed(t, small(t))
	pod := pod("nginx:1.27", "redis", "nginx:1.28")
	pod.Spec.InitContainers = containers("nginx:1.27")
	pod.Spec.Volumes = []corev1.Volume{{Name: "files", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: "nginx:1.27"}}}}
	expected := pod.DeepCopy()
	expected.Spec.Containers[0].Image = nginx
	expected.Spec.InitContainers[0].Image = nginx
	expected.Spec.Volumes[0].Image.Reference = nginx
	must(t, cluster.create(pod))
	if pod.String() != expected.String() {
		t.Errorf("%v\nis not\n%v", pod, expected)
	}
}

func TestTheWebhookChangesOnlyNewEphemeralContainers(t *testing.T) {
	cluster := installed(t, small(t))
	ephemeral := func(names ...string) *corev1.Pod {
		pod := pod("nginx:1.27")
		for _, name := range names {
			common := corev1.EphemeralContainerCommon{Name: name, Image: "nginx:1.27"}
			pod.Spec.EphemeralContainers = append(pod.Spec.EphemeralContainers, corev1.EphemeralContainer{EphemeralContainerCommon: common})
		}
		return pod
	}
	pod := ephemeral("a", "b")
	must(t, cluster.update(pod, ephemeral("a"), "ephemeralcontainers"))
	images := []string{pod.Spec.Containers[0].Image, pod.Spec.EphemeralContainers[0].Image, pod.Spec.EphemeralContainers[1].Image}
	if !slices.Equal(images, []string{"nginx:1.27", "nginx:1.27", nginx}) {
		t.Error(images)
	}
}

func TestTheWebhookIsNotCalledForWhoeverOptsOut(t *testing.T) {
	labels := map[string]string{"ecr-transfer/mirror": "disabled"}
	name := func(name string) map[string]string { return map[string]string{"kubernetes.io/metadata.name": name} }
	cluster := installed(t, small(t), namespace("out", labels), namespace("in", name("in")), namespace("ecr-transfer", name("ecr-transfer")))
	for _, case_ := range []struct {
		namespace string
		labels    map[string]string
		changed   bool
	}{{"in", nil, true}, {"in", labels, false}, {"out", nil, false}, {"ecr-transfer", nil, false}} {
		pod := pod("nginx:1.27")
		pod.Namespace, pod.Labels = case_.namespace, case_.labels
		must(t, cluster.create(pod))
		if changed := pod.Spec.Containers[0].Image == nginx; changed != case_.changed {
			t.Errorf("%v: %s", case_, pod.Spec.Containers[0].Image)
		}
	}
}

func TestTheWebhookChangesAContainerThatAnotherOneAdds(t *testing.T) {
	cluster := installed(t, small(t))
	pod := pod("redis")
	must(t, cluster.create(pod))
	if image := pod.Spec.Containers[1].Image; image != nginx {
		t.Error(image)
	}
}

func TestAPodKeepsItsImagesIfTheWebhookIsDown(t *testing.T) {
	printed := manifests(t)
	server, address := serve(t, printed.secret, small(t))
	cluster := calling(t, address, printed.configuration)
	cluster.wait(t, canary)
	must(t, server.Process.Signal(syscall.SIGTERM))
	must(t, server.Wait())
	if images := cluster.images(t, "nginx:1.27", "redis"); images[0] != "nginx:1.27" {
		t.Error(images)
	}
}

func TestAPodKeepsItsImagesIfTheWebhookDoesNotAnswer(t *testing.T) {
	printed := manifests(t)
	server, address := serve(t, printed.secret, small(t))
	cluster := calling(t, address, printed.configuration)
	cluster.wait(t, canary)
	// It accepts connections, and is stopped.
	must(t, server.Process.Signal(syscall.SIGSTOP))
	began := time.Now()
	if images := cluster.images(t, "nginx:1.27", "redis"); images[0] != "nginx:1.27" {
		t.Error(images)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Error("the API server waited for", took)
	}
	must(t, server.Process.Signal(syscall.SIGCONT))
	cluster.wait(t, canary)
}

func TestTheFormerCertificateIsTrustedUntilThePodsHaveTheNewOne(t *testing.T) {
	former := manifests(t)
	_, address := serve(t, former.secret, small(t))
	bundle := write(t, "former.pem", former.configuration.Webhooks[0].ClientConfig.CABundle)
	for _, case_ := range []struct {
		options []string
		changed bool
	}{{[]string{"--former-ca", bundle}, true}, {nil, false}} {
		latter := manifests(t, case_.options...)
		if images := calling(t, address, latter.configuration).changes(t); images != case_.changed {
			t.Errorf("%v: %v", case_, images)
		}
		_, replaced := serve(t, latter.secret, small(t))
		if !calling(t, replaced, latter.configuration).changes(t) {
			t.Errorf("%v: the new certificate is not trusted", case_)
		}
	}
}

// changes says whether new pods are changed. The webhook plugin knows its configuration from the start.
func (c *cluster) changes(t testing.TB) bool {
	t.Helper()
	return c.images(t, canary, "redis")[0] != canary
}

func TestADryRunOfTheWebhookOnlyAnnotates(t *testing.T) {
	printed := manifests(t)
	_, address := serve(t, printed.secret, small(t), "--dry-run")
	cluster := calling(t, address, printed.configuration)
	for _, annotations := range []map[string]string{nil, {"a/b": "c"}} {
		pod := pod("nginx:1.27", "redis")
		pod.Annotations = annotations
		must(t, cluster.create(pod))
		if image := pod.Spec.Containers[0].Image; image != "nginx:1.27" {
			t.Error(image)
		}
		if use := pod.Annotations["ecr-transfer/would-use"]; use != fmt.Sprintf(`{"caa":"%s"}`, nginx) {
			t.Error(pod.Annotations)
		}
		if pod.Annotations["a/b"] != annotations["a/b"] {
			t.Error(pod.Annotations)
		}
	}
}

func TestAServerThatIsNotTheWebhookChangesNothing(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer listener.Close()
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = connection.Write([]byte(strings.Repeat("x", 100)))
			_ = connection.Close()
		}
	}()
	if calling(t, listener.Addr().String(), manifests(t).configuration).changes(t) {
		t.Error("the pod has changed")
	}
}

func TestTheWebhookAndTheCommandAgree(t *testing.T) {
	seed := time.Now().UnixNano()
	if text := os.Getenv("SEED"); text != "" {
		must(t, json.Unmarshal([]byte(text), &seed))
	}
	t.Logf("SEED=%d", seed)
	random := rand.New(rand.NewSource(seed))
	for range 5 {
		repositories := randomRepositories(random)
		images := make([]string, 400)
		for i := range images {
			images[i] = randomImage(random, repositories)
		}
		file := inventory(t, repositories...)
		compare(t, installed(t, file), file, images)
	}
}
