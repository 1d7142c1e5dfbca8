// Package kubernetes runs what `ecr-transfer mirror kubernetes` prints on the admission code of Kubernetes' API server.
package kubernetes

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	admissionv1beta1 "k8s.io/api/admissionregistration/v1beta1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/conversion"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	yamlstream "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/initializer"
	"k8s.io/apiserver/pkg/admission/plugin/policy/mutating"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/util/compatibility"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/discovery"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/openapi"
	"k8s.io/client-go/openapi/openapitest"
	"k8s.io/klog/v2"
	"sigs.k8s.io/yaml"
)

func TestMain(m *testing.M) {
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	os.Exit(m.Run())
}

// cluster is an API server's chain of admission plugins.
type cluster struct {
	admission admission.MutationInterface
	scheme    *runtime.Scheme
}

// newCluster starts the policy plugin on the objects, with the namespace default. The plugins behind it come later in the chain.
func newCluster(t testing.TB, objects []runtime.Object, behind map[string]admission.Interface) *cluster {
	t.Helper()
	scheme := runtime.NewScheme()
	must(t, clientscheme.AddToScheme(scheme))
	// An API server converts pods between its internal version and v1. Here is v1 alone.
	must(t, scheme.AddConversionFunc((*corev1.Pod)(nil), (*corev1.Pod)(nil), func(from, to any, _ conversion.Scope) error {
		from.(*corev1.Pod).DeepCopyInto(to.(*corev1.Pod))
		return nil
	}))
	mapper := meta.NewDefaultRESTMapper(nil)
	mapper.Add(corev1.SchemeGroupVersion.WithKind("ConfigMap"), meta.RESTScopeNamespace)
	mapper.Add(corev1.SchemeGroupVersion.WithKind("Pod"), meta.RESTScopeNamespace)

	client := apiServer{fake.NewSimpleClientset(append(objects, namespace("default", nil))...)}
	factory := informers.NewSharedInformerFactory(client, 0)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	plugins := admission.NewPlugins()
	mutating.Register(plugins)
	names := []string{mutating.PluginName}
	for name, plugin := range behind {
		plugins.Register(name, func(io.Reader) (admission.Interface, error) { return plugin, nil })
		names = append(names, name)
	}
	chain, err := plugins.NewFromPlugins(names, noConfiguration{}, initializer.New(client, dynamicfake.NewSimpleDynamicClient(scheme),
		factory, everythingAllowed{}, utilfeature.DefaultFeatureGate, compatibility.DefaultBuildEffectiveVersion(), ctx.Done(), mapper), nil)
	must(t, err)
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	return &cluster{chain.(admission.MutationInterface), scheme}
}

// apply starts a cluster with the printed manifests, and waits until the policy works: until canary is another image.
func apply(t testing.TB, manifests []byte, canary string, more ...runtime.Object) *cluster {
	t.Helper()
	cluster := newCluster(t, append(decode(t, manifests), more...), nil)
	cluster.wait(t, canary)
	return cluster
}

func (c *cluster) wait(t testing.TB, canary string) {
	t.Helper()
	var last error
	err := wait.PollUntilContextTimeout(context.Background(), 20*time.Millisecond, 20*time.Second, true, func(context.Context) (bool, error) {
		pod := pod(canary)
		last = c.create(pod)
		return last == nil && pod.Spec.Containers[0].Image != canary, nil
	})
	if err != nil {
		t.Fatalf("the policy does not change %s (last error: %v)", canary, last)
	}
}

// create admits a new pod, and changes it as the policy does.
func (c *cluster) create(pod *corev1.Pod) error { return c.admit(pod, nil, "", admission.Create) }

// update admits a change of a pod, or of a part of it.
func (c *cluster) update(pod, old *corev1.Pod, subresource string) error {
	return c.admit(pod, old, subresource, admission.Update)
}

func (c *cluster) admit(pod, old *corev1.Pod, subresource string, operation admission.Operation) error {
	var before runtime.Object
	var options runtime.Object = &metav1.CreateOptions{}
	if old != nil {
		before, options = old, &metav1.UpdateOptions{}
	}
	attributes := admission.NewAttributesRecord(pod, before, corev1.SchemeGroupVersion.WithKind("Pod"), pod.Namespace, pod.Name,
		corev1.SchemeGroupVersion.WithResource("pods"), subresource, operation, options, false, &user.DefaultInfo{Name: "test"})
	return c.admission.Admit(context.Background(), attributes, admission.NewObjectInterfacesFromScheme(c.scheme))
}

// images admits a new pod with containers of these images, and returns what they are then.
func (c *cluster) images(t testing.TB, images ...string) []string {
	t.Helper()
	pod := pod(images...)
	must(t, c.create(pod))
	var admitted []string
	for _, container := range pod.Spec.Containers {
		admitted = append(admitted, container.Image)
	}
	return admitted
}

func pod(images ...string) *corev1.Pod {
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: "pod", Namespace: "default"},
		Spec:       corev1.PodSpec{Containers: containers(images...)},
	}
}

func containers(images ...string) (containers []corev1.Container) {
	for i, image := range images {
		containers = append(containers, corev1.Container{Name: "c" + string(rune('a'+i/26)) + string(rune('a'+i%26)), Image: image})
	}
	return
}

func namespace(name string, labels map[string]string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
}

// decode reads manifests as strictly as an API server, and sets the defaults that it would set.
func decode(t testing.TB, manifests []byte) (objects []runtime.Object) {
	t.Helper()
	for _, document := range split(t, manifests) {
		var kind metav1.TypeMeta
		must(t, yaml.Unmarshal(document, &kind))
		switch kind.APIVersion + " " + kind.Kind {
		case "v1 ConfigMap":
			object := strict[corev1.ConfigMap](t, document)
			if size := object.Size(); size > 1<<20 {
				t.Fatalf("the ConfigMap %s has %d bytes", object.Name, size)
			}
			objects = append(objects, object)
		case "admissionregistration.k8s.io/v1 MutatingAdmissionPolicy":
			objects = append(objects, withDefaults(strict[admissionv1.MutatingAdmissionPolicy](t, document)))
		case "admissionregistration.k8s.io/v1 MutatingAdmissionPolicyBinding":
			objects = append(objects, strict[admissionv1.MutatingAdmissionPolicyBinding](t, document))
		case "admissionregistration.k8s.io/v1beta1 MutatingAdmissionPolicy":
			beta := strict[admissionv1beta1.MutatingAdmissionPolicy](t, document)
			objects = append(objects, withDefaults(convert[admissionv1.MutatingAdmissionPolicy](t, beta)))
		case "admissionregistration.k8s.io/v1beta1 MutatingAdmissionPolicyBinding":
			beta := strict[admissionv1beta1.MutatingAdmissionPolicyBinding](t, document)
			objects = append(objects, convert[admissionv1.MutatingAdmissionPolicyBinding](t, beta))
		default:
			t.Fatalf("unexpected: %s %s", kind.APIVersion, kind.Kind)
		}
	}
	return objects
}

func split(t testing.TB, manifests []byte) (documents [][]byte) {
	t.Helper()
	reader := yamlstream.NewYAMLReader(bufio.NewReader(bytes.NewReader(manifests)))
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return documents
		}
		must(t, err)
		documents = append(documents, document)
	}
}

func withDefaults(policy *admissionv1.MutatingAdmissionPolicy) *admissionv1.MutatingAdmissionPolicy {
	equivalent, all := admissionv1.Equivalent, admissionv1.AllScopes
	constraints := policy.Spec.MatchConstraints
	if constraints.MatchPolicy == nil {
		constraints.MatchPolicy = &equivalent
	}
	for i := range constraints.ResourceRules {
		constraints.ResourceRules[i].Scope = &all
	}
	return policy
}

func strict[T any](t testing.TB, document []byte) *T {
	t.Helper()
	var object T
	must(t, yaml.UnmarshalStrict(document, &object))
	return &object
}

func convert[T any](t testing.TB, object any) *T {
	t.Helper()
	text, err := json.Marshal(object)
	must(t, err)
	return strict[T](t, text)
}

// ecrTransfer runs the command, and returns what it prints. Exit code 1 is not an error.
func ecrTransfer(t testing.TB, arguments ...string) []byte {
	t.Helper()
	var problem strings.Builder
	command := exec.Command(os.Getenv("ECR_TRANSFER"), arguments...)
	command.Stderr = &problem
	output, err := command.Output()
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) {
		t.Fatalf("ecr-transfer %s: %v: %s", strings.Join(arguments[:2], " "), err, problem.String())
	}
	return output
}

// write writes a file that exists as long as the test runs.
func write(t testing.TB, name string, content []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	must(t, os.WriteFile(file, content, 0o600))
	return file
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// apiServer is a fake client. The policy plugin also asks for schemas, which the fake client lacks.
type apiServer struct{ *fake.Clientset }

func (s apiServer) Discovery() discovery.DiscoveryInterface { return schemas{s.Clientset.Discovery()} }

type schemas struct{ discovery.DiscoveryInterface }

func (schemas) OpenAPIV3() openapi.Client { return openapitest.NewEmbeddedFileClient() }

type everythingAllowed struct{}

func (everythingAllowed) Authorize(context.Context, authorizer.Attributes) (authorizer.Decision, string, error) {
	return authorizer.DecisionAllow, "", nil
}

type noConfiguration struct{}

func (noConfiguration) ConfigFor(string) (io.Reader, error) { return nil, nil }
