package kubernetes

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/mutating"
	"k8s.io/apiserver/pkg/admission/plugin/policy/mutating/patch"
	"k8s.io/apiserver/pkg/cel/environment"
)

const mirror = "111111111111.dkr.ecr.us-east-1.amazonaws.com"

// copied is a repository of an inventory. Its copy has the name m/NAME, and image is what a digest is made of.
type copied struct {
	source, name string
	tags         map[string]string
	untagged     []string
}

func digest(image string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(image))) }

func inventory(t testing.TB, repositories ...copied) (file string) {
	t.Helper()
	type image struct {
		Tag    string `json:"tag,omitempty"`
		Digest string `json:"digest"`
	}
	type entry struct {
		Source      string  `json:"source"`
		Destination string  `json:"destination"`
		Images      []image `json:"images"`
	}
	entries := []entry{}
	for _, repository := range repositories {
		images := []image{}
		for tag, content := range repository.tags {
			images = append(images, image{tag, digest(content)})
		}
		for _, content := range repository.untagged {
			images = append(images, image{Digest: digest(content)})
		}
		entries = append(entries, entry{repository.source, mirror + "/m/" + repository.name, images})
	}
	text, err := json.Marshal(map[string]any{"version": 1, "registry": mirror, "repositories": entries})
	must(t, err)
	return write(t, "inventory.json", text)
}

func policy(t testing.TB, inventory string, options ...string) []byte {
	t.Helper()
	return ecrTransfer(t, append([]string{"mirror", "kubernetes", "--inventory", inventory}, options...)...)
}

// resolved is what `mirror resolve` says: the mirror's image, or the image itself.
func resolved(t testing.TB, inventory string, images []string, options ...string) (names []string) {
	t.Helper()
	arguments := append([]string{"mirror", "resolve", "--json", "--inventory", inventory}, options...)
	var answers []struct{ Image, Mirror, Reason string }
	must(t, json.Unmarshal(ecrTransfer(t, slices.Concat(arguments, []string{"--"}, images)...), &answers))
	for i, answer := range answers {
		if answer.Image != images[i] {
			t.Fatalf("mirror resolve was asked for %q, and answered %q", images[i], answer.Image)
		}
		if answer.Mirror == "" {
			names = append(names, answer.Image)
		} else {
			names = append(names, answer.Mirror)
		}
	}
	return names
}

func small(t testing.TB) (file string) {
	return inventory(t,
		copied{"docker.io/library/nginx", "hub/nginx", map[string]string{"1.27": "a", "latest": "b"}, []string{"c"}},
		copied{"quay.io/coreos/etcd", "etcd", map[string]string{"v3": "d"}, nil},
		copied{"harbor.example.com:5000/team/app", "app", map[string]string{"v1": "e"}, nil},
		copied{mirror + "/app", "copy", map[string]string{"1": "f"}, nil},
	)
}

const canary = "quay.io/coreos/etcd:v3"

func TestAnImageIsChangedIfTheMirrorHasIt(t *testing.T) {
	file := small(t)
	cluster := apply(t, policy(t, file), canary)
	for image, expected := range map[string]string{
		"nginx":                               "hub/nginx:latest",
		"nginx:1.27":                          "hub/nginx:1.27",
		"library/nginx:1.27":                  "hub/nginx:1.27",
		"docker.io/nginx":                     "hub/nginx:latest",
		"docker.io/library/nginx:latest":      "hub/nginx:latest",
		"index.docker.io/nginx:1.27":          "hub/nginx:1.27",
		"registry-1.docker.io/library/nginx":  "hub/nginx:latest",
		"DOCKER.io/nginx":                     "hub/nginx:latest",
		"Quay.IO/coreos/etcd:v3":              "etcd:v3",
		"nginx@" + digest("c"):                "hub/nginx@" + digest("c"),
		"nginx:1.27@" + digest("a"):           "hub/nginx:1.27@" + digest("a"),
		"nginx:gone@" + digest("a"):           "hub/nginx:gone@" + digest("a"),
		"harbor.example.com:5000/team/app:v1": "app:v1",
		mirror + "/app:1":                     "copy:1",
		"nginx:1.28":                          "",
		"nginx:1":                             "",
		"nginx:1.27 latest":                   "",
		"nginx:1.27@" + digest("none"):        "",
		"nginx@" + digest("a")[:70]:           "",
		"nginx@" + digest("a") + "0":          "",
		"nginx@sha256:" + digest("a")[7:23]:   "",
		"nginx:-@" + digest("a"):              "",
		"quay.io/coreos/etcd":                 "",
		"quay.io/coreos/etcd@" + digest("a"):  "",
		"redis":                               "",
		"localhost:5000/nginx":                "",
		"localhost/nginx":                     "",
		"docker.io:443/nginx":                 "",
		"quay.ioScoreos/etcd:v3":              "",
		"library/Nginx":                       "",
		"quay.io/coreosSetcd:v3":              "",
		"harbor.example.comP5000/team/app:v1": "",
		"nginx\n":                             "",
		" nginx":                              "",
		"{{ image }}":                         "",
		mirror + "/m/hub/nginx:1.27":          "",
		mirror + "/m/hub/nginx:none":          "",
		mirror + "/other":                     "",
	} {
		if expected == "" {
			expected = image
		} else {
			expected = mirror + "/m/" + expected
		}
		if admitted := cluster.images(t, image)[0]; admitted != expected {
			t.Errorf("%q became %q instead of %q", image, admitted, expected)
		}
		if name := resolved(t, file, []string{image})[0]; name != expected {
			t.Errorf("%q resolves to %q instead of %q", image, name, expected)
		}
	}
}

func TestThePageTellsTheTruth(t *testing.T) {
	text, err := os.ReadFile("../../docs/mirror/kubernetes.md")
	must(t, err)
	_, rest, _ := strings.Cut(string(text), "```json\n")
	inventory, rest, _ := strings.Cut(rest, "```")
	cluster := apply(t, policy(t, write(t, "inventory.json", []byte(inventory))), "nginx:1.27")
	rows := 0
	for line := range strings.Lines(rest) {
		if cells := strings.Split(line, "`"); strings.HasPrefix(line, "| `") {
			rows++
			if admitted := cluster.images(t, cells[1])[0]; admitted != cells[3] {
				t.Errorf("%s became %s", cells[1], admitted)
			}
		}
	}
	if rows != 7 {
		t.Errorf("%d images", rows)
	}
}

func TestWithMatchRepositoryAnyTagIsChanged(t *testing.T) {
	file := small(t)
	cluster := apply(t, policy(t, file, "--match", "repository"), canary)
	images := []string{"nginx:1.28", "nginx@" + digest("none"), "redis", "nginx:-", "localhost:5000/nginx", "etcd"}
	expected := resolved(t, file, images, "--match", "repository")
	if admitted := cluster.images(t, images...); !slices.Equal(admitted, expected) || admitted[0] != mirror+"/m/hub/nginx:1.28" {
		t.Errorf("%q", admitted)
	}
}

func TestNothingButTheImagesOfAPodChanges(t *testing.T) {
	cluster := apply(t, policy(t, small(t)), canary)
	always, seconds := corev1.ContainerRestartPolicyAlways, int64(5)
	original := pod("redis", "nginx", "nginx:1.27")
	original.Annotations = map[string]string{"a/b": "c"}
	original.Spec.Containers[1].Args = []string{"nginx", "\"é\\\n"}
	original.Spec.Containers[2].ImagePullPolicy = corev1.PullAlways
	original.Spec.InitContainers = containers("nginx", "busybox", "docker.io/nginx")
	original.Spec.InitContainers[0].RestartPolicy = &always
	original.Spec.TerminationGracePeriodSeconds = &seconds
	original.Spec.Volumes = []corev1.Volume{
		{Name: "empty", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		{Name: "image", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: "nginx:1.27", PullPolicy: corev1.PullNever}}},
		{Name: "none", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{}}},
	}
	admitted := original.DeepCopy()
	must(t, cluster.create(admitted))
	for image, to := range map[*string]string{
		&original.Spec.Containers[1].Image:                     "latest",
		&original.Spec.Containers[2].Image:                     "1.27",
		&original.Spec.InitContainers[0].Image:                 "latest",
		&original.Spec.InitContainers[2].Image:                 "latest",
		&original.Spec.Volumes[1].VolumeSource.Image.Reference: "1.27",
	} {
		*image = mirror + "/m/hub/nginx:" + to
	}
	if !equality.Semantic.DeepEqual(original, admitted) {
		t.Errorf("expected %v\nadmitted %v", original, admitted)
	}
}

func TestOnlyNewEphemeralContainersChange(t *testing.T) {
	cluster := apply(t, policy(t, small(t)), canary)
	ephemeral := func(names ...string) *corev1.Pod {
		pod := pod("nginx")
		for _, name := range names {
			common := corev1.EphemeralContainerCommon{Name: name, Image: "nginx"}
			pod.Spec.EphemeralContainers = append(pod.Spec.EphemeralContainers, corev1.EphemeralContainer{EphemeralContainerCommon: common})
		}
		return pod
	}
	for _, case_ := range []struct{ old, new []string }{{nil, []string{"a"}}, {[]string{"a"}, []string{"a", "b"}}, {[]string{"a"}, []string{"a"}}} {
		pod := ephemeral(case_.new...)
		must(t, cluster.update(pod, ephemeral(case_.old...), "ephemeralcontainers"))
		for i, container := range pod.Spec.EphemeralContainers {
			if changed := container.Image == mirror+"/m/hub/nginx:latest"; changed != (i >= len(case_.old)) {
				t.Errorf("%v: %s", case_, container.Image)
			}
		}
		if pod.Spec.Containers[0].Image != "nginx" {
			t.Error("a container of a running pod has changed")
		}
	}
}

func TestRunningPodsAndOtherObjectsStayAsTheyAre(t *testing.T) {
	cluster := apply(t, policy(t, small(t)), canary)
	updated := pod("nginx")
	must(t, cluster.update(updated, pod("nginx"), ""))
	must(t, cluster.update(updated, pod("nginx"), "status"))
	if updated.Spec.Containers[0].Image != "nginx" {
		t.Error("a running pod has changed")
	}
	deployment := &appsv1.Deployment{Spec: appsv1.DeploymentSpec{Template: corev1.PodTemplateSpec{Spec: pod("nginx").Spec}}}
	must(t, cluster.admission.Admit(context.Background(), admission.NewAttributesRecord(deployment, nil,
		appsv1.SchemeGroupVersion.WithKind("Deployment"), "default", "d", appsv1.SchemeGroupVersion.WithResource("deployments"), "",
		admission.Create, &metav1.CreateOptions{}, false, nil), admission.NewObjectInterfacesFromScheme(cluster.scheme)))
	if deployment.Spec.Template.Spec.Containers[0].Image != "nginx" {
		t.Error("a Deployment has changed")
	}
}

func TestNamespacesAndPodsCanOptOut(t *testing.T) {
	cluster := apply(t, policy(t, small(t)), canary,
		namespace("out", map[string]string{"ecr-transfer/mirror": "disabled"}), namespace("in", map[string]string{"ecr-transfer/mirror": "x"}))
	for _, case_ := range []struct {
		namespace string
		label     string
		changed   bool
	}{{"default", "", true}, {"in", "", true}, {"default", "disabled", false}, {"out", "", false}} {
		pod := pod("nginx")
		pod.Namespace = case_.namespace
		if case_.label != "" {
			pod.Labels = map[string]string{"ecr-transfer/mirror": case_.label}
		}
		must(t, cluster.create(pod))
		if changed := pod.Spec.Containers[0].Image != "nginx"; changed != case_.changed {
			t.Errorf("%v: %s", case_, pod.Spec.Containers[0].Image)
		}
	}
}

// injector is a plugin that adds a container, as service meshes do.
type injector struct{ *admission.Handler }

func (injector) Admit(_ context.Context, attributes admission.Attributes, _ admission.ObjectInterfaces) error {
	if pod, isPod := attributes.GetObject().(*corev1.Pod); isPod && len(pod.Spec.Containers) == 1 {
		pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: "injected", Image: "nginx:1.27"})
		attributes.GetReinvocationContext().SetShouldReinvoke()
	}
	return nil
}

func TestAContainerThatIsAddedLaterIsChangedToo(t *testing.T) {
	plugins := map[string]admission.Interface{"injector": injector{admission.NewHandler(admission.Create)}}
	cluster := newCluster(t, decode(t, policy(t, small(t))), plugins)
	cluster.wait(t, canary)
	pod := pod("nginx")
	must(t, cluster.create(pod))
	if image := pod.Spec.Containers[1].Image; image != mirror+"/m/hub/nginx:1.27" {
		t.Error(image)
	}
}

func TestTheBetaHasTheSameContent(t *testing.T) {
	file := small(t)
	beta := policy(t, file, "--v1beta1")
	if v1 := bytes.ReplaceAll(beta, []byte("/v1beta1"), []byte("/v1")); !bytes.Equal(v1, policy(t, file)) {
		t.Error("v1beta1 differs from v1")
	}
	apply(t, beta, canary)
}

// An API server compiles a new policy for the version before its own, so that it can be rolled back.
func TestKubernetes134CanCompileThePolicy(t *testing.T) {
	compiler, err := cel.NewCompositedCompiler(environment.MustBaseEnvSet(version.MajorMinor(1, 33)))
	must(t, err)
	declarations := cel.OptionalVariableDeclarations{HasParams: true, HasAuthorizer: true}
	for _, match := range []string{"image", "repository"} {
		for _, object := range decode(t, policy(t, small(t), "--v1beta1", "--match", match)) {
			policy, isPolicy := object.(*admissionv1.MutatingAdmissionPolicy)
			if !isPolicy {
				continue
			}
			for _, variable := range policy.Spec.Variables {
				compiled := compiler.CompileAndStoreVariable(&mutating.Variable{Name: variable.Name, Expression: variable.Expression}, declarations, environment.NewExpressions)
				if compiled.Error != nil {
					t.Errorf("%s: %v", variable.Name, compiled.Error)
				}
			}
			declarations := declarations
			declarations.HasPatchTypes = true
			mutation := &patch.JSONPatchCondition{Expression: policy.Spec.Mutations[0].JSONPatch.Expression}
			for _, err := range compiler.CompileMutatingEvaluator(mutation, declarations, environment.NewExpressions).CompilationErrors() {
				t.Error(err)
			}
		}
	}
}

// Many containers whose repository is so large that Kubernetes gives up.
func TestAPolicyThatCannotBeEvaluatedRejectsNoPod(t *testing.T) {
	large := copied{"docker.io/library/large", "large", map[string]string{}, nil}
	for i := range 20_000 {
		large.tags[fmt.Sprintf("%0100d", i)] = "a"
	}
	file := inventory(t, large, copied{"quay.io/coreos/etcd", "etcd", map[string]string{"v3": "d"}, nil})
	images := slices.Repeat([]string{fmt.Sprintf("large:%0100d", 1)}, 500)
	cluster := apply(t, policy(t, file), canary)
	if admitted := cluster.images(t, images...); !slices.Equal(admitted, images) {
		t.Errorf("the policy was expected to fail, and changed images: %s", admitted[0])
	}
	cluster = apply(t, policy(t, file, "--failure-policy", "fail"), canary)
	if err := cluster.create(pod(images...)); err == nil || !strings.Contains(err.Error(), "cost") {
		t.Errorf("the policy was expected to reject the pod: %v", err)
	}
}

// As the page promises.
func TestAPodCanHaveManyContainersOfALargeRepository(t *testing.T) {
	large := copied{"docker.io/library/large", "large", map[string]string{}, nil}
	var tags, digests []string
	for i := range 20_000 {
		tag := fmt.Sprintf("1.%d.0-alpine", i)
		large.tags[tag] = tag
		tags, digests = append(tags, "large:"+tag), append(digests, "large@"+digest(tag))
	}
	cluster := apply(t, policy(t, inventory(t, large)), tags[0])
	for _, images := range [][]string{tags[:60], digests[:20]} {
		for _, image := range cluster.images(t, images...) {
			if !strings.HasPrefix(image, mirror) {
				t.Errorf("%s stays as it is", image)
			}
		}
	}
}

// numbered has repositories of many sizes. The first has a twentieth of the tags. In another generation, a tenth is others.
func numbered(count, generation int) (repositories []copied) {
	sizes := []int{1, 2, 5, 10, 32}
	for i := 0; count > 0; i++ {
		size := min(sizes[i%len(sizes)], count)
		if i == 0 {
			size = count / 20
		}
		name := fmt.Sprintf("team%d/service-%d", i%7, i)
		repository := copied{"registry.example.com/" + name, name, map[string]string{}, nil}
		for j := range size {
			tag := fmt.Sprintf("1.%d.%d", j, i)
			if j%10 == 0 {
				tag = fmt.Sprintf("1.%d.%d", j, i+generation)
			}
			repository.tags[tag] = name + tag
		}
		repositories = append(repositories, repository)
		count -= size
	}
	return repositories
}

func samples(repositories []copied, count int) (images []string) {
	random := rand.New(rand.NewSource(1))
	for range count {
		repository := repositories[random.Intn(len(repositories))]
		for tag, content := range repository.tags {
			images = append(images, []string{
				repository.source + ":" + tag,
				repository.source + "@" + digest(content),
				repository.source + ":" + tag + "0",
				repository.source + "@" + digest(content+"0"),
			}[random.Intn(4)])
			break
		}
	}
	return images
}

func TestApplyingItAgainLeavesNothingOfTheFormerRun(t *testing.T) {
	// From more ConfigMaps to fewer, from fewer to more, and as many as before.
	for _, sizes := range [][2]int{{60_000, 2_000}, {2_000, 60_000}, {20_000, 20_000}} {
		before, after := numbered(sizes[0], 0), numbered(sizes[1], 1)
		file := inventory(t, after...)
		former, latter := decode(t, policy(t, inventory(t, before...))), decode(t, policy(t, file))
		images := append(samples(before, 40), samples(after, 40)...)
		cluster := newCluster(t, applied(t, former, latter), nil)
		cluster.wait(t, mirrored(t, file, images))
		compare(t, cluster, file, images)
	}
}

// applied is what a cluster has after `kubectl apply` of one after the other: nothing is deleted.
func applied(t testing.TB, former, latter []runtime.Object) (objects []runtime.Object) {
	names := map[string]bool{}
	for _, object := range append(latter, former...) {
		accessor, err := meta.Accessor(object)
		must(t, err)
		name := fmt.Sprintf("%T %s", object, accessor.GetName())
		if !names[name] {
			objects = append(objects, object)
		}
		names[name] = true
	}
	return objects
}

func mirrored(t testing.TB, file string, images []string) string {
	for i, name := range resolved(t, file, images) {
		if name != images[i] {
			return images[i]
		}
	}
	t.Fatal("none of the images is mirrored")
	return ""
}

// compare fails if a pod with these images gets others than `mirror resolve` says.
func compare(t testing.TB, cluster *cluster, file string, images []string) {
	t.Helper()
	for expected := resolved(t, file, images); len(images) > 0; {
		count := min(10, len(images))
		for i, admitted := range cluster.images(t, images[:count]...) {
			if admitted != expected[i] {
				t.Errorf("%q became %q, but resolves to %q", images[i], admitted, expected[i])
			}
		}
		images, expected = images[count:], expected[count:]
	}
}

func TestThePolicyAndTheCommandAgree(t *testing.T) {
	seed := time.Now().UnixNano()
	if text := os.Getenv("SEED"); text != "" {
		must(t, json.Unmarshal([]byte(text), &seed))
	}
	t.Logf("SEED=%d", seed)
	random := rand.New(rand.NewSource(seed))
	changed, total := 0, 0
	for range 20 {
		repositories := randomRepositories(random)
		file := inventory(t, repositories...)
		images := make([]string, 400)
		for i := range images {
			images[i] = randomImage(random, repositories)
		}
		for i, name := range resolved(t, file, images) {
			total++
			if name != images[i] {
				changed++
			}
		}
		options := [][]string{nil, {"--match", "repository"}}[random.Intn(2)]
		cluster := apply(t, policy(t, file, options...), canary)
		expected := resolved(t, file, images, options...)
		for i := 0; i < len(images); i += 10 {
			for j, admitted := range cluster.images(t, images[i:i+10]...) {
				if admitted != expected[i+j] {
					t.Errorf("%v: %q became %q, but resolves to %q", options, images[i+j], admitted, expected[i+j])
				}
			}
		}
	}
	t.Logf("%d of %d images are mirrored", changed, total)
	if changed < total/10 || changed > total*9/10 {
		t.Error("the images prove too little")
	}
}

func pick[T any](random *rand.Rand, choices ...T) T { return choices[random.Intn(len(choices))] }

func randomTag(random *rand.Rand) string {
	return pick(random, "latest", "1", "1.27", "1.27-alpine", "v3", "_x", "A", "a", "0", strings.Repeat("t", 128))
}

func randomName(random *rand.Rand) string {
	parts := make([]string, 1+random.Intn(3))
	for i := range parts {
		parts[i] = pick(random, "library", "nginx", "a", "a-b", "a__b", "a.b", "s3", "p", "docker.io", "localhost")
	}
	return strings.Join(parts, "/")
}

func randomRepositories(random *rand.Rand) []copied {
	repositories := []copied{{"quay.io/coreos/etcd", "etcd", map[string]string{"v3": "d"}, nil}}
	for i := range 1 + random.Intn(20) {
		source := pick(random, "docker.io/library/", "docker.io/a/", "docker.io/", "quay.io/", "localhost/", "localhost:5000/", "a.b:80/", mirror+"/s/") + randomName(random)
		if strings.Count(source, "/") == 1 && strings.HasPrefix(source, "docker.io/") {
			continue
		}
		repository := copied{source, fmt.Sprint("r", i), map[string]string{}, nil}
		for range random.Intn(6) {
			repository.tags[randomTag(random)] = pick(random, "a", "b", "c")
		}
		if random.Intn(2) == 0 {
			repository.untagged = []string{pick(random, "a", "b", "c")}
		}
		if !slices.ContainsFunc(repositories, func(other copied) bool { return other.source == source }) {
			repositories = append(repositories, repository)
		}
	}
	return repositories
}

func randomImage(random *rand.Rand, repositories []copied) string {
	repository := pick(random, repositories...)
	name := repository.source
	if random.Intn(10) == 0 {
		name = pick(random, "docker.io/", "quay.io/", "localhost:5000/", "", mirror+"/") + randomName(random)
	}
	if rest, isHub := strings.CutPrefix(name, "docker.io/"); isHub {
		if random.Intn(2) == 0 {
			rest = strings.TrimPrefix(rest, "library/")
		}
		name = pick(random, "docker.io/", "index.docker.io/", "registry-1.docker.io/", "Docker.IO/", "", "") + rest
	}
	tag := randomTag(random)
	for known := range repository.tags {
		tag = pick(random, tag, known, known)
		break
	}
	name += pick(random, "", ":"+tag, ":"+tag, ":"+tag)
	switch random.Intn(6) {
	case 0, 1:
		name += "@" + digest(pick(random, "a", "b", "c", "d"))
	case 2:
		name += pick(random, "@", "@sha256:", "@sha256:0", "@sha512:"+strings.Repeat("0", 128), ":1", "@"+strings.ToUpper(digest("a")))
	}
	if random.Intn(4) == 0 {
		at := random.Intn(len(name) + 1)
		insert := pick(random, "", ":", "/", "@", ".", "-", "_", "S", "P", "a", "0", " ", "\n", "é", "library/", "docker.io/")
		name = name[:at] + insert + name[min(at+random.Intn(2), len(name)):]
	}
	return strings.ToValidUTF8(name, "")
}

// TestFigures prints the table of the page.
func TestFigures(t *testing.T) {
	if os.Getenv("FIGURES") == "" {
		t.Skip("FIGURES=1 measures")
	}
	fmt.Println("| Tags | Repositories | ConfigMaps | Bytes | First pod | Each further pod |\n| ---: | ---: | ---: | ---: | ---: | ---: |")
	for _, count := range []int{6_000, 20_000, 100_000} {
		repositories := numbered(count, 0)
		file := inventory(t, repositories...)
		manifests := policy(t, file)
		objects := decode(t, manifests)
		images := samples(repositories, 200)
		cluster := newCluster(t, objects, nil)
		cluster.wait(t, mirrored(t, file, images))
		compare(t, cluster, file, images)
		first := time.Now()
		must(t, newCluster(t, objects, nil).create(pod(images[:3]...)))
		took := time.Since(first)
		var later []time.Duration
		for i := range 190 {
			began := time.Now()
			cluster.images(t, images[i:i+3]...)
			later = append(later, time.Since(began))
		}
		slices.Sort(later)
		fmt.Printf("| %d | %d | %d | %d | %d ms | %.1f ms |\n", count, len(repositories), len(objects)-2, len(manifests),
			took.Milliseconds(), later[len(later)/2].Seconds()*1000)
	}
}
