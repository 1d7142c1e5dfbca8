//! Where ministack answers otherwise than AWS's documentation says, the gateway puts it right on the way.

use serde_json::Value;

/// Whether there is something to put right in the answers to a call.
#[must_use]
pub fn concerns(action: &str) -> bool {
    action == "ecr:BatchGetImage"
}

/// The answer to a call as AWS gives it; `None` where ministack's is as documented.
#[must_use]
pub fn corrected(action: &str, request: &[u8], answer: &[u8]) -> Option<Vec<u8>> {
    if concerns(action) { batch_get_image(request, answer) } else { None }
}

/// `images` is
/// ["a list of image objects corresponding to the image references in the request"](https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_BatchGetImage.html).
/// ministack names an image by its first tag, whichever it was asked for.
fn batch_get_image(request: &[u8], answer: &[u8]) -> Option<Vec<u8>> {
    let request: Value = serde_json::from_slice(request).ok()?;
    let mut answer: Value = serde_json::from_slice(answer).ok()?;
    let mut failed: Vec<Value> =
        answer["failures"].as_array()?.iter().map(|failure| failure["imageId"].clone()).collect();
    // They come in the order of the references, without those that failed.
    let found = request["imageIds"].as_array()?.iter().filter(|reference| {
        let failure = failed.iter().position(|failed| failed == *reference);
        failure.map(|index| failed.swap_remove(index)).is_none()
    });
    for (image, reference) in answer["images"].as_array_mut()?.iter_mut().zip(found) {
        match &reference["imageTag"] {
            Value::Null => drop(image["imageId"].as_object_mut()?.remove("imageTag")),
            tag => image["imageId"]["imageTag"] = tag.clone(),
        }
    }
    serde_json::to_vec(&answer).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_image_that_is_asked_for_by_two_tags_and_by_its_digest_is_answered_for_each() {
        let image = json!({ "imageId": { "imageDigest": "sha256:1", "imageTag": "1" }, "imageManifest": "{}" });
        let references = json!([
            { "imageTag": "1" }, { "imageTag": "missing" }, { "imageTag": "latest" }, { "imageDigest": "sha256:1" }
        ]);
        let request = json!({ "repositoryName": "app", "imageIds": references }).to_string();
        let failure = json!({ "imageId": { "imageTag": "missing" }, "failureCode": "ImageNotFound" });
        let answer = json!({ "images": [image, image, image], "failures": [failure] }).to_string();
        let answer = corrected("ecr:BatchGetImage", request.as_bytes(), answer.as_bytes()).unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        let ids: Vec<_> = answer["images"].as_array().unwrap().iter().map(|image| image["imageId"].clone()).collect();
        assert_eq!(
            ids,
            [
                json!({ "imageDigest": "sha256:1", "imageTag": "1" }),
                json!({ "imageDigest": "sha256:1", "imageTag": "latest" }),
                json!({ "imageDigest": "sha256:1" }),
            ]
        );
        assert_eq!(answer["failures"], json!([failure]));
        assert_eq!(corrected("ecr:ListImages", b"{}", b"{}"), None);
    }
}
