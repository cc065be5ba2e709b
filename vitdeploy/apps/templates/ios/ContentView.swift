import PhotosUI
import SwiftUI

/// Classifies a photo that is chosen or taken, after the model has proven itself on a known picture.
struct ContentView: View {
    @State private var work = Work()
    @State private var proof = "Opening the model …"
    @State private var opened = false
    @State private var chosen: PhotosPickerItem?
    @State private var photo: UIImage?
    @State private var answers: [String] = []
    @State private var camera = false

    var body: some View {
        ScrollView {
            VStack(alignment: .leading, spacing: 16) {
                PhotosPicker("Choose a photo", selection: $chosen, matching: .images)
                    .disabled(!opened)
                if UIImagePickerController.isSourceTypeAvailable(.camera) {
                    Button("Take a photo") { camera = true }
                        .disabled(!opened)
                }
                if let photo {
                    Image(uiImage: photo)
                        .resizable()
                        .scaledToFit()
                }
                ForEach(answers, id: \.self) { Text(verbatim: $0) }
                Text(verbatim: proof)
                    .font(.footnote)
                    .foregroundStyle(.secondary)
            }
            .padding()
            .frame(maxWidth: .infinity, alignment: .leading)
        }
        .task { await open() }
        .onChange(of: chosen) { _, item in
            Task { await load(item) }
        }
        .fullScreenCover(isPresented: $camera) {
            Camera { taken in
                camera = false
                if let taken { Task { await classify(taken) } }
            }
            .ignoresSafeArea()
        }
    }

    private func open() async {
        do {
            proof = try await work.open()
            opened = true
        } catch {
            proof = "Failed: \(error.localizedDescription)"
        }
    }

    private func load(_ item: PhotosPickerItem?) async {
        guard let item else { return }
        do {
            guard let data = try await item.loadTransferable(type: Data.self), let image = UIImage(data: data) else {
                answers = ["This is not a photo."]
                return
            }
            await classify(image)
        } catch {
            answers = ["Failed: \(error.localizedDescription)"]
        }
    }

    private func classify(_ image: UIImage) async {
        photo = image
        do {
            answers = try await work.classify(image)
        } catch {
            answers = ["Failed: \(error.localizedDescription)"]
        }
    }
}
